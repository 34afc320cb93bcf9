"""The layers of a vision tower in NumPy, for the CPU.

MLX computes exponentials one at a time on a CPU (13 to 18 ns each, NumPy 0.3 to 0.6), and each of its operations costs
30 to 50 µs beside: docs/engine.md. Arrays are float32, one row a patch; results equal MLX's to rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Self

import numpy as np

from vlmd_bridge.engine.pictures.patches import Floats

# Scores of queries and keys at a time, four bytes each: about what a core's cache holds, however large the picture.
_SCORES = 1 << 20

# Rows of a feed-forward layer at a time, for the same reason.
_ROWS = 512

# Abramowitz and Stegun 7.1.26: at most 1.5e-7 from the error function.
_ERF_P = 0.3275911
_ERF = (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592)

_ROOT = math.sqrt(2 / math.pi)


@dataclass(frozen=True, slots=True)
class Linear:
    """``x @ weight.T + bias``."""

    weight: Floats
    bias: Floats | None

    @classmethod
    def of(cls, layer: Any) -> Self:
        """Return an `mlx.nn.Linear`, whose weights stay where they are."""
        return cls(np.asarray(layer.weight), np.asarray(layer.bias) if "bias" in layer else None)

    def __call__(self, x: Floats) -> Floats:
        """Return the layer's output."""
        y = x @ self.weight.T
        if self.bias is not None:
            y += self.bias
        return y


@dataclass(frozen=True, slots=True)
class LayerNorm:
    """To mean 0 and variance 1 along a row."""

    weight: Floats
    bias: Floats
    eps: float

    @classmethod
    def of(cls, layer: Any) -> Self:
        """Return an `mlx.nn.LayerNorm`."""
        return cls(np.asarray(layer.weight), np.asarray(layer.bias), layer.eps)

    def __call__(self, x: Floats) -> Floats:
        """Return the rows, normalised."""
        y: Floats = x - x.mean(axis=-1, keepdims=True)
        y *= _inverse_deviation(y, self.eps)
        y *= self.weight
        y += self.bias
        return y


@dataclass(frozen=True, slots=True)
class RmsNorm:
    """To a mean square of 1 along a row."""

    weight: Floats
    eps: float

    @classmethod
    def of(cls, layer: Any) -> Self:
        """Return an `mlx.nn.RMSNorm`."""
        return cls(np.asarray(layer.weight), layer.eps)

    def __call__(self, x: Floats) -> Floats:
        """Return the rows, normalised."""
        y = x * _inverse_deviation(x, self.eps)
        y *= self.weight
        return y


def _inverse_deviation(x: Floats, eps: float) -> Floats:
    squares = np.einsum("ij,ij->i", x, x)[:, None]
    deviations: Floats = np.sqrt(squares / np.float32(x.shape[-1]) + np.float32(eps))
    return np.reciprocal(deviations, out=deviations)


def gelu_tanh(x: Floats) -> Floats:
    """Return GELU by its tanh formula; `x` is overwritten."""
    inner = x * x
    inner *= 0.044715 * _ROOT
    inner += _ROOT
    inner *= x
    np.tanh(inner, out=inner)
    inner += 1
    x *= 0.5
    x *= inner
    return x


def gelu(x: Floats) -> Floats:
    """Return GELU by the error function; `x` is overwritten."""
    z = np.abs(x)
    z *= math.sqrt(0.5)
    t = z * _ERF_P
    t += 1
    np.reciprocal(t, out=t)
    erfc = np.full_like(t, _ERF[0])
    for term in (*_ERF[1:], 0.0):
        erfc *= t
        erfc += term
    z *= z
    np.negative(z, out=z)
    np.exp(z, out=z)
    erfc *= z  # of the absolute value: 1 - erf
    # x * (1 + erf(x)) / 2 = (x + |x| * erf(|x|)) / 2
    np.subtract(1, erfc, out=erfc)
    erfc *= np.abs(x)
    x += erfc
    x *= 0.5
    return x


def silu(x: Floats) -> Floats:
    """Return ``x * sigmoid(x)``; `x` is overwritten."""
    # By tanh, which does not overflow.
    half = x * np.float32(0.5)
    np.tanh(half, out=half)
    half += 1
    half *= 0.5
    x *= half
    return x


@dataclass(frozen=True, kw_only=True, slots=True)
class Attention:
    """Attention of every patch to every other one of its segment, with rotary positions."""

    qkv: Linear
    proj: Linear
    heads: int
    scale: float

    @classmethod
    def of(cls, layer: Any) -> Self:
        """Return the `Attention` of mlx-vlm's Qwen towers."""
        return cls(qkv=Linear.of(layer.qkv), proj=Linear.of(layer.proj), heads=layer.num_heads, scale=layer.scale)

    def __call__(self, x: Floats, cosine: Floats, sine: Floats, segments: tuple[int, ...]) -> Floats:
        """Return the layer's output. `segments` are the bounds between them, from 0 to the number of rows."""
        qkv = self.qkv(x).reshape(len(x), 3, self.heads, -1)
        rotated = _rotated(qkv[:, :2], cosine, sine)
        rotated[:, 0] *= self.scale
        out = np.empty((len(x), self.heads, qkv.shape[-1]), np.float32)
        # (heads, rows, width), all of them views
        query, key = (rotated[:, i].transpose(1, 0, 2) for i in (0, 1))
        value, result = qkv[:, 2].transpose(1, 0, 2), out.transpose(1, 0, 2)
        for begin, end in pairwise(segments):
            rows = slice(begin, end)
            _attend(query[:, rows], key[:, rows], value[:, rows], result[:, rows])
        return self.proj(out.reshape(len(x), -1))


def _rotated(x: Floats, cosine: Floats, sine: Floats) -> Floats:
    """Return queries and keys turned by their position; `cosine` and `sine` are ``(rows, 1, 1, width / 2)``."""
    half = x.shape[-1] // 2
    low, high = x[..., :half], x[..., half:]
    y = np.empty(x.shape, np.float32)
    np.multiply(low, cosine, out=y[..., :half])
    y[..., :half] -= high * sine
    np.multiply(high, cosine, out=y[..., half:])
    y[..., half:] += low * sine
    return y


def _attend(query: Floats, key: Floats, value: Floats, out: Floats) -> None:
    """Write the attention of `query` into `out`, as many heads, or rows of one head, at a time as the cache holds."""
    heads, rows, _ = query.shape
    head_step = min(heads, max(1, _SCORES // rows**2))
    row_step = rows if rows**2 <= _SCORES else max(1, _SCORES // rows)
    for h in range(0, heads, head_step):
        some = slice(h, h + head_step)
        keys, values = key[some].transpose(0, 2, 1), value[some]
        for r in range(0, rows, row_step):
            scores = query[some, r : r + row_step] @ keys
            scores -= scores.max(axis=-1, keepdims=True)
            np.exp(scores, out=scores)
            result = scores @ values
            result /= scores.sum(axis=-1, keepdims=True)
            out[some, r : r + row_step] = result


@dataclass(frozen=True, slots=True)
class Mlp:
    """Two linear layers around a GELU."""

    fc1: Linear
    fc2: Linear

    @classmethod
    def of(cls, layer: Any) -> Self:
        """Return the `MLP` of mlx-vlm's Qwen3-VL tower."""
        return cls(Linear.of(layer.linear_fc1), Linear.of(layer.linear_fc2))

    def __call__(self, x: Floats) -> Floats:
        """Return the layer's output."""
        return _in_blocks(x, lambda rows: self.fc2(gelu_tanh(self.fc1(rows))))


@dataclass(frozen=True, slots=True)
class GatedMlp:
    """The feed-forward layer of Qwen2.5-VL's tower."""

    gate: Linear
    up: Linear
    down: Linear

    @classmethod
    def of(cls, layer: Any) -> Self:
        """Return the `MLP` of mlx-vlm's Qwen2.5-VL tower."""
        return cls(Linear.of(layer.gate_proj), Linear.of(layer.up_proj), Linear.of(layer.down_proj))

    def __call__(self, x: Floats) -> Floats:
        """Return the layer's output."""
        return _in_blocks(x, lambda rows: self.down(silu(self.gate(rows)) * self.up(rows)))


def _in_blocks(x: Floats, layer: Callable[[Floats], Floats]) -> Floats:
    if len(x) <= _ROWS:
        return layer(x)
    return np.concatenate([layer(x[i : i + _ROWS]) for i in range(0, len(x), _ROWS)])
