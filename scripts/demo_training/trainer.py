"""The training loop: one of several processes that step together."""

from __future__ import annotations

import json
import math
import random
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
from mlx.utils import tree_flatten, tree_unflatten
from tokenizers import Tokenizer

from demo_training import prompts
from demo_training.batches import Batcher
from demo_training.checkpoint import new_model, write_weights
from demo_training.curriculum import Stage, draw_examples
from demo_training.exchange import Exchange
from demo_training.forward import Forward, make_trainee
from demo_training.pool import FramePool, description_numbers

_STAGES = (Stage.LOOK, Stage.READ, Stage.WORK)
# The learning rate climbs over the first steps and then falls along half a cosine.
_PEAK_RATE = 2e-3
_FINAL_RATE = 1e-5
# Adam moves every weight by about the rate, so an output moves by the rate times the inputs that agree. A patch has
# 1,536 that often all do (one plain colour), and the mergers' layers 512, against some 192 elsewhere.
_RATE_SCALES = {"patch_embed": 0.1, "merger": 0.4}
_WARM_UP_STEPS = 100
_CLIP_NORM = 1.0
# How fast the loss of a description follows what was just seen, and how many frames are drawn without regard to it.
_MISSED_SHARE = 0.1
_UNBIASED_SHARE = 0.25
# Looking is learned when the picture's own tokens cost less than this, in nats; ignored, they cost about 1.6.
_LOOK_LOSS = 0.6
_LOOK_SHARE = 0.30
_READ_SHARE = 0.25
_REPORT_STEPS = 25
_EVALUATE_STEPS = 250
HELD_OUT_FRAMES = 192
# What naming a picture counts beside describing it, at first.
_HEAD_WEIGHT = 0.5


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """What a run is told.

    Training begins when `first_frames` of the pool's `frames` are rendered. `steps` bounds the run by steps, which is
    reproducible; otherwise the learning rate follows `budget_s` of training.
    """

    folder: Path
    seed: int
    frames: int
    first_frames: int
    budget_s: float
    steps: int | None


@dataclass(kw_only=True, slots=True)
class Position:
    """How far a run has come; kept in its checkpoint."""

    step: int = 0
    elapsed_s: float = 0.0
    stage: int = 0
    read_until: float = 0.0
    detail_loss: float = 2.0
    best: float = -1.0


def train(rank: int, settings: Settings, exchange: Exchange) -> None:
    """Train as process `rank` until the run's bound; rank 0 evaluates and writes."""
    Trainer(rank, settings, exchange).run()


class Trainer:
    """One process of a run."""

    def __init__(self, rank: int, settings: Settings, exchange: Exchange) -> None:
        self._rank = rank
        self._settings = settings
        self._exchange = exchange
        mx.random.seed(settings.seed)
        self._pool = FramePool(settings.folder / "frames", seed=settings.seed, count=settings.frames)
        self._pool.ready()
        labels = self._labels = description_numbers(self._pool, settings.first_frames)
        # The head's recent loss of each description; the last one stands for those without a number.
        self._missed = np.ones(len(labels) + 1)
        self._model = new_model(settings.folder / "model")
        self._trainee = make_trainee(self._model, len(labels))
        self._optimizer = optim.AdamW(0.0, betas=[0.9, 0.98], weight_decay=0.01, bias_correction=True)
        self._optimizer.init(self._trainee.trainable_parameters())
        self._position = Position()
        self._resume()
        self._forward = Forward(self._model)
        self._gradient = nn.value_and_grad(self._trainee, self._forward.losses)
        tokenizer = Tokenizer.from_file(str(settings.folder / "model" / "tokenizer.json"))
        self._batcher = Batcher(tokenizer, self._pool, labels)
        self._held_out = FramePool(settings.folder / "held-out", seed=settings.seed + 1, count=HELD_OUT_FRAMES)
        self._judge = Batcher(tokenizer, self._held_out, labels)
        self._recent: dict[str, list[float]] = {}

    def run(self) -> None:
        """Step until the run's bound."""
        position, settings = self._position, self._settings
        started_s = time.monotonic() - position.elapsed_s
        while True:
            position.elapsed_s = time.monotonic() - started_s
            done = position.elapsed_s / settings.budget_s if settings.steps is None else position.step / settings.steps
            progress, position.stage = self._exchange.decide(self._rank, done, self._next_stage(done))
            if progress >= 1:
                break
            self._step(progress)
            position.step += 1
            if self._rank == 0:
                if position.step % _REPORT_STEPS == 0:
                    self._report(progress)
                if position.step % _EVALUATE_STEPS == 0:
                    self._evaluate_and_save()
        if self._rank == 0:
            self._evaluate_and_save()

    def _next_stage(self, progress: float) -> int:
        position = self._position
        if position.stage == 0 and (position.detail_loss < _LOOK_LOSS or progress > _LOOK_SHARE):
            position.read_until = progress + _READ_SHARE
            return 1
        if position.stage == 1 and progress > position.read_until:
            return 2
        return position.stage

    def _step(self, progress: float) -> None:
        position = self._position
        rng = random.Random(f"{self._settings.seed}/{position.step}/{self._rank}")
        task, examples = draw_examples(_STAGES[position.stage], rng, self._pool, self._picker(rng))
        batch = self._batcher.batch(examples, rng)
        # The head's share fades, so that in the end only what is shipped counts.
        (loss, each, missed), gradients = self._gradient(self._trainee, batch, _HEAD_WEIGHT * (1 - progress))
        flat = tree_flatten(gradients)
        joined = np.array(mx.concatenate([gradient.reshape(-1) for _, gradient in flat]))
        mean = mx.array(self._exchange.average(self._rank, joined))
        parts, start = [], 0
        for name, gradient in flat:
            parts.append((name, mean[start : start + gradient.size].reshape(gradient.shape)))
            start += gradient.size
        clipped, _ = optim.clip_grad_norm(tree_unflatten(parts), _CLIP_NORM)
        rate = _FINAL_RATE + (_PEAK_RATE - _FINAL_RATE) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
        self._optimizer.learning_rate = rate * min(1.0, (position.step + 1) / _WARM_UP_STEPS)
        self._update(clipped)
        mx.eval(self._trainee.parameters(), self._optimizer.state)
        detail = np.array(each)[batch.weights > 1]
        if detail.size:
            self._recent.setdefault(task, []).append(float(detail.mean()))
            if task.value in ("short", "single"):
                position.detail_loss += 0.04 * (float(detail.mean()) - position.detail_loss)
        if len(batch.labels):
            head = np.array(missed)
            self._recent.setdefault("head", []).append(float(head.mean()))
            for label, loss_of_one in zip(batch.labels, head, strict=True):
                self._missed[label] += _MISSED_SHARE * (loss_of_one - self._missed[label])
        self._recent.setdefault("loss", []).append(loss.item())

    def _picker(self, rng: random.Random) -> Callable[[], int]:
        """Return what draws a frame: mostly the one of two whose description the head misses more."""
        ready, pool = self._pool.ready(), self._pool

        def pick() -> int:
            one, other = rng.randrange(ready), rng.randrange(ready)
            if rng.random() < _UNBIASED_SHARE:
                return one
            missed = [self._missed[self._labels.get(pool.truth(i).record.description, -1)] for i in (one, other)]
            return one if missed[0] >= missed[1] else other

        return pick

    def _update(self, gradients: Any) -> None:
        before = {name: value for name, value in tree_flatten(self._trainee.parameters()) if _rate_scale(name) < 1}
        self._optimizer.update(self._trainee, gradients)
        after = dict(tree_flatten(self._trainee.parameters()))
        slowed = [(name, value + _rate_scale(name) * (after[name] - value)) for name, value in before.items()]
        self._trainee.load_weights(slowed, strict=False)

    def _report(self, progress: float) -> None:
        means = " ".join(f"{name} {sum(values) / len(values):.4f}" for name, values in sorted(self._recent.items()))
        self._recent.clear()
        position = self._position
        print(
            f"step {position.step} {progress:.1%} {position.elapsed_s / position.step:.2f} s/step"
            f" {_STAGES[position.stage]} rate {float(self._optimizer.learning_rate):.2e} {means}",
            flush=True,
        )

    def _evaluate_and_save(self) -> None:
        single, interleaved, questions = (self._exact(kind) for kind in ("single", "interleaved", "question"))
        position = self._position
        print(
            f"held out at step {position.step}: exact single {single:.3f} interleaved {interleaved:.3f}"
            f" questions {questions:.3f}",
            flush=True,
        )
        if single + interleaved >= position.best:
            position.best = single + interleaved
            metadata = {"seed": str(self._settings.seed), "steps": str(position.step)}
            write_weights(self._settings.folder / "model", self._model, metadata)
        self._save()

    def _exact(self, kind: str) -> float:
        """Return the share of held-out records that greedy decoding gets right to the letter.

        Greedy decoding writes an answer exactly when each of its tokens is the likeliest after the ones before it.
        """
        rng = random.Random(self._settings.seed)
        count = self._held_out.ready()
        right = total = 0
        for start in range(0, count - 15, 16):
            frames = range(start, start + 16)
            truths = [self._held_out.truth(frame) for frame in frames]
            if kind == "single":
                examples = [prompts.single(rng, frame, truth) for frame, truth in zip(frames, truths, strict=True)]
            elif kind == "question":
                examples = [prompts.question(rng, frame, truth) for frame, truth in zip(frames, truths, strict=True)]
            else:
                groups = range(0, 16, 4)
                examples = [prompts.interleaved(rng, frames[i : i + 4], truths[i : i + 4]) for i in groups]
            batch = self._judge.batch(examples)
            wrong = np.array(mx.argmax(self._forward.logits(self._model, batch), axis=-1)) != batch.targets
            if kind == "interleaved":
                # Split a row's answer into its lines: a line ends where the next one begins.
                lines = _line_numbers(self._judge, batch)
                right += 16 - len(set(lines[wrong].tolist()))
                total += 16
            else:
                right += len(examples) - len(set(batch.rows[wrong].tolist()))
                total += len(examples)
        return right / max(1, total)

    def _state_path(self) -> Path:
        return self._settings.folder / "state"

    def _save(self) -> None:
        path = self._state_path()
        path.mkdir(exist_ok=True)
        arrays = {f"trainee.{name}": value for name, value in tree_flatten(self._trainee.parameters())}
        arrays |= {f"optimizer.{name}": value for name, value in tree_flatten(self._optimizer.state)}
        mx.save_safetensors(str(path / "partial.safetensors"), arrays)
        (path / "partial.json").write_text(json.dumps(asdict(self._position)))
        (path / "partial.safetensors").replace(path / "state.safetensors")
        (path / "partial.json").replace(path / "position.json")

    def _resume(self) -> None:
        path = self._state_path()
        if not (path / "position.json").exists():
            return
        arrays = cast("dict[str, mx.array]", mx.load(str(path / "state.safetensors")))
        self._trainee.load_weights(_below("trainee.", arrays))
        self._optimizer.state = tree_unflatten(_below("optimizer.", arrays))
        self._position = Position(**json.loads((path / "position.json").read_text()))
        mx.eval(self._trainee.parameters(), self._optimizer.state)


def _rate_scale(parameter: str) -> float:
    return next((scale for part, scale in _RATE_SCALES.items() if part in parameter), 1.0)


def _below(prefix: str, arrays: dict[str, mx.array]) -> list[tuple[str, mx.array]]:
    return [(name.removeprefix(prefix), value) for name, value in arrays.items() if name.startswith(prefix)]


def _line_numbers(batcher: Batcher, batch: Any) -> np.ndarray[Any, Any]:
    """Return, for each answer token, the number of its line among all lines of the batch."""
    starts_row = np.diff(batch.rows, prepend=-1) != 0
    after_newline = np.concatenate([[False], np.isin(batch.targets[:-1], batcher.newlines)])
    lines: np.ndarray[Any, Any] = np.cumsum(starts_row | after_newline) - 1
    return lines
