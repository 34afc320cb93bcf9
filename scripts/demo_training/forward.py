"""The model's forward pass for training: the same parameters and sums as mlx-vlm's, in batches and quick on a CPU.

Three things differ in how it is computed, none in what: every picture has the same grid, so the vision tower's position
tables are made once and its pictures are one batch; the patch convolution is a matrix product; and tokens that all
rows begin with are run once. `tests/integration/test_demo_training.py` compares it with mlx-vlm's own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import numpy.typing as npt

from demo_training import fastmath

GRID_ROWS = 10
GRID_COLUMNS = 16
PATCHES = GRID_ROWS * GRID_COLUMNS
IMAGE_TOKENS = PATCHES // 4


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """One training batch of B rows of L tokens after P shared ones, with N pictures.

    Attributes:
        patches: [N * 160, 768], each patch as rows, columns, channels, in [-1, 1].
        prefix: [P] token ids that every row begins with; may be empty.
        ids: [B, L] token ids, padded at the end.
        positions: [3, B, P + L] rotary positions: time, row, column.
        visual: [B, L] zero for a text token, else one plus the index of the image token it stands for.
        answer_at: [M] flat indices into [B, L] of the tokens that predict an answer's token.
        targets: [M] those answer tokens.
        weights: [M] what each counts in the loss.
        rows: [M] the row each belongs to.
        labels: [N] the number of each picture's description for the auxiliary loss, or -1 where it has none.
    """

    patches: npt.NDArray[np.float32]
    prefix: npt.NDArray[np.int32]
    ids: npt.NDArray[np.int32]
    positions: npt.NDArray[np.int32]
    visual: npt.NDArray[np.int32]
    answer_at: npt.NDArray[np.int32]
    targets: npt.NDArray[np.int32]
    weights: npt.NDArray[np.float32]
    rows: npt.NDArray[np.int32]
    labels: npt.NDArray[np.int32]


def make_trainee(model: Any, labels: int) -> Any:
    """Return a module of `model` and of a head that names a picture's description from the mean of its tokens.

    The head is a crutch of training and not shipped: by way of the language model alone, the vision tower is slow to
    learn counting, since what it finds counts for nothing until the language model attends to it.
    """
    trainee = nn.Module()
    trainee.model = model
    trainee.head = nn.Linear(model.config.text_config.hidden_size, labels)
    mx.eval(trainee.parameters())
    return trainee


def to_patches(pixels: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return [N, 160, 256, 3] values of 0..255 as patches, in the vision tower's order: 2x2 blocks, row by row."""
    blocks = pixels.reshape(-1, GRID_ROWS // 2, 2, 16, GRID_COLUMNS // 2, 2, 16, 3)
    patches = blocks.transpose(0, 1, 4, 2, 5, 3, 6, 7).reshape(-1, 768)
    scaled = np.ascontiguousarray(patches, dtype=np.float32)
    scaled *= np.float32(1 / 127.5)
    scaled -= 1
    return scaled


class Forward:
    """Computes logits of answer tokens with an mlx-vlm Qwen3-VL model's parameters."""

    def __init__(self, model: Any) -> None:
        tower = model.vision_tower
        grid = mx.array([[1, GRID_ROWS, GRID_COLUMNS]])
        angles = tower.rot_pos_emb(grid)
        self._vision_cos = mx.concatenate([mx.cos(angles)] * 2, axis=-1)
        self._vision_sin = mx.concatenate([mx.sin(angles)] * 2, axis=-1)
        self._table = _interpolation_table(tower, grid)
        mx.eval(self._vision_cos, self._vision_sin, self._table)

    def _see(self, tower: Any, patches: mx.array) -> list[mx.array]:
        """Return the picture features and those of each deepstack level, [N * 40, hidden]."""
        weight = tower.patch_embed.proj.weight.sum(axis=1).reshape(-1, 768)
        width = weight.shape[0]
        h = (patches @ weight.T + tower.patch_embed.proj.bias).reshape(-1, PATCHES, width)
        h = h + self._table @ tower.pos_embed.weight
        levels = []
        for i, block in enumerate(tower.blocks):
            h = h + self._vision_attention(block.attn, block.norm1(h))
            mlp = block.mlp
            h = h + mlp.linear_fc2(fastmath.gelu_tanh(mlp.linear_fc1(block.norm2(h))))
            if i in tower.deepstack_visual_indexes:
                merger = tower.deepstack_merger_list[tower.deepstack_visual_indexes.index(i)]
                levels.append(_merge(merger, merger.norm(h.reshape(-1, 4 * width))))
        return [_merge(tower.merger, tower.merger.norm(h).reshape(-1, 4 * width)), *levels]

    def _vision_attention(self, attention: Any, h: mx.array) -> mx.array:
        count, _, width = h.shape
        qkv = attention.qkv(h).reshape(count, PATCHES, 3, attention.num_heads, -1).transpose(2, 0, 3, 1, 4)
        q = _rotate(qkv[0], self._vision_cos, self._vision_sin) * attention.scale
        k = _rotate(qkv[1], self._vision_cos, self._vision_sin)
        mixed = fastmath.softmax(q @ k.swapaxes(-1, -2)) @ qkv[2]
        projected: mx.array = attention.proj(mixed.transpose(0, 2, 1, 3).reshape(count, PATCHES, width))
        return projected

    def logits(self, model: Any, batch: Batch) -> mx.array:
        """Return the logits [M, vocabulary] that predict the batch's answer tokens."""
        return self._run(model, batch)[0]

    def _run(self, model: Any, batch: Batch) -> tuple[mx.array, mx.array | None]:
        """Return the logits and the picture features [N * 40, hidden]."""
        text = model.language_model.model
        embed = text.embed_tokens
        h = embed(mx.array(batch.ids))
        levels: list[mx.array] = []
        features = None
        if batch.patches.size:
            visual = mx.array(batch.visual)
            nothing = mx.zeros((1, h.shape[-1]))
            seen = self._see(model.vision_tower, mx.array(batch.patches))
            placed = [mx.concatenate([nothing, level])[visual] for level in seen]
            h = mx.where((visual > 0)[..., None], placed[0], h)
            features, levels = seen[0], placed[1:]
        shared = embed(mx.array(batch.prefix))[None] if batch.prefix.size else None
        prefix = batch.prefix.size
        positions = mx.array(batch.positions)
        rotary = text.layers[0].self_attn.rotary_emb
        cos, sin = (mx.expand_dims(table, 1) for table in rotary(h, positions))
        mask = _causal_mask(h.shape[1], prefix)
        for i, layer in enumerate(text.layers):
            attended, attended_shared = _attend(layer, h, shared, cos, sin, mask, prefix)
            h = h + attended
            h = h + _feed_forward(layer, h)
            if shared is not None and i + 1 < len(text.layers):
                shared = shared + attended_shared
                shared = shared + _feed_forward(layer, shared)
            if i < len(levels):
                h = h + levels[i]
        answers = text.norm(h.reshape(-1, h.shape[-1])[mx.array(batch.answer_at)])
        logits: mx.array = embed.as_linear(answers)
        return logits, features

    def losses(self, trainee: Any, batch: Batch, head_weight: float) -> tuple[mx.array, mx.array, mx.array]:
        """Return the loss to train by, the loss of each answer token, and the head's loss of each picture.

        The loss to train by is the weighted mean of the second plus `head_weight` times the mean of the third.
        """
        logits, features = self._run(trainee.model, batch)
        targets = mx.array(batch.targets)
        each = fastmath.log_sum_exp(logits) - mx.take_along_axis(logits, targets[:, None], axis=-1).squeeze(-1)
        weights = mx.array(batch.weights)
        loss = (each * weights).sum() / weights.sum()
        if features is None:
            return loss, each, mx.zeros((0,))
        pooled = features.reshape(-1, IMAGE_TOKENS, features.shape[-1]).mean(axis=1)
        named = trainee.head(pooled)
        labels = mx.array(np.maximum(batch.labels, 0))[:, None]
        missed = fastmath.log_sum_exp(named) - mx.take_along_axis(named, labels, axis=-1).squeeze(-1)
        missed = missed * mx.array((batch.labels >= 0).astype(np.float32))
        return loss + head_weight * missed.mean(), each, missed


def _interpolation_table(tower: Any, grid: mx.array) -> mx.array:
    """Return the [160, positions] matrix by which the tower interpolates its learned positions."""
    positions, width = tower.pos_embed.weight.shape
    learned = tower.pos_embed.weight
    columns = []
    # The tower looks positions up in an embedding: rows of the identity, `width` of them at a time.
    for start in range(0, positions, width):
        tower.pos_embed.weight = mx.eye(positions, width, -start)
        columns.append(tower.fast_pos_embed_interpolate(grid))
    tower.pos_embed.weight = learned
    return mx.concatenate(columns, axis=-1)[:, :positions]


def _merge(merger: Any, h: mx.array) -> mx.array:
    merged: mx.array = merger.linear_fc2(fastmath.gelu(merger.linear_fc1(h)))
    return merged


def _rotate(x: mx.array, cos: mx.array, sin: mx.array) -> mx.array:
    half = x.shape[-1] // 2
    return x * cos + mx.concatenate([-x[..., half:], x[..., :half]], axis=-1) * sin


def _causal_mask(length: int, prefix: int) -> mx.array:
    allowed = np.tri(length, length + prefix, prefix, dtype=bool)
    return mx.array(np.where(allowed, 0.0, -1e9).astype(np.float32))


def _heads(attention: Any, x: mx.array, cos: mx.array, sin: mx.array) -> tuple[mx.array, mx.array, mx.array]:
    rows, length, _ = x.shape
    q = attention.q_norm(attention.q_proj(x).reshape(rows, length, attention.n_heads, -1)).transpose(0, 2, 1, 3)
    k = attention.k_norm(attention.k_proj(x).reshape(rows, length, attention.n_kv_heads, -1)).transpose(0, 2, 1, 3)
    v = attention.v_proj(x).reshape(rows, length, attention.n_kv_heads, -1).transpose(0, 2, 1, 3)
    return _rotate(q, cos, sin), _rotate(k, cos, sin), v


def _mix(attention: Any, q: mx.array, k: mx.array, v: mx.array, mask: mx.array) -> mx.array:
    rows, heads, length, size = q.shape
    groups = k.shape[1]
    # Query heads that share keys are stacked, so that each product is one matrix product.
    stacked = (q * attention.scale).reshape(rows, groups, -1, size)
    scores = (stacked @ k.swapaxes(-1, -2)).reshape(rows, heads, length, -1) + mask
    mixed = fastmath.softmax(scores).reshape(rows, groups, -1, k.shape[2]) @ v
    mixed = mixed.reshape(rows, heads, length, size).transpose(0, 2, 1, 3).reshape(rows, length, -1)
    projected: mx.array = attention.o_proj(mixed)
    return projected


def _attend(
    layer: Any, h: mx.array, shared: mx.array | None, cos: mx.array, sin: mx.array, mask: mx.array, prefix: int
) -> tuple[mx.array, mx.array | None]:
    attention = layer.self_attn
    q, k, v = _heads(attention, layer.input_layernorm(h), cos[:, :, prefix:], sin[:, :, prefix:])
    if shared is None:
        return _mix(attention, q, k, v, mask), None
    # Every row has the same positions in the shared tokens: the first row's stand for all.
    own = _heads(attention, layer.input_layernorm(shared), cos[:1, :, :prefix], sin[:1, :, :prefix])
    rows = h.shape[0]
    k = mx.concatenate([mx.repeat(own[1], rows, axis=0), k], axis=2)
    v = mx.concatenate([mx.repeat(own[2], rows, axis=0), v], axis=2)
    return _mix(attention, q, k, v, mask), _mix(attention, *own, _causal_mask(prefix, 0))


def _feed_forward(layer: Any, h: mx.array) -> mx.array:
    mlp, x = layer.mlp, layer.post_attention_layernorm(h)
    fed: mx.array = mlp.down_proj(fastmath.swiglu(mlp.gate_proj(x), mlp.up_proj(x)))
    return fed
