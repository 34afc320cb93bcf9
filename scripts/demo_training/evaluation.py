"""Figures of a checkpoint, taken as a user would meet it: opened by mlx-vlm, greedy, full-size frames."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from demo_training.prompts import CHAT, QUESTIONS
from vlmd_bridge.demo import Frame, Topic
from vlmd_bridge.record import (
    SINGLE_INSTRUCTIONS,
    Record,
    interleaved_instructions,
    interleaved_label,
    parse_interleaved,
    parse_record,
    single_label,
)

# Rows that decode together.
_WIDTH = 8
# A record is about 30 tokens.
_RECORD_TOKENS = 64

Part = str | Image.Image


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """How many of `total` answers are right."""

    name: str
    right: int
    total: int

    def __str__(self) -> str:
        return f"{self.name:<36} {self.right / self.total:7.1%}  ({self.right} of {self.total})"


class Generator:
    """A checkpoint opened by mlx-vlm; answers prompts greedily, several at once."""

    def __init__(self, folder: Path) -> None:
        from mlx_vlm import load

        self._model: Any
        self._processor: Any
        self._model, self._processor = load(str(folder))

    def answers(self, prompts: Sequence[Sequence[Part]], max_tokens: int) -> list[str]:
        """Return the answer to each prompt, a user turn of texts and pictures in order."""
        return [text for group in _groups(prompts, _WIDTH) for text in self._answer_group(group, max_tokens)]

    def _answer_group(self, prompts: Sequence[Sequence[Part]], max_tokens: int) -> list[str]:
        from mlx_vlm.generate import BatchGenerator

        # Prefill is exact for Qwen3-VL only one row at a time and in one piece.
        generator = BatchGenerator(
            self._model.language_model,
            self._processor,
            compute_logprobs=False,
            prefill_batch_size=1,
            completion_batch_size=_WIDTH,
            prefill_step_size=1 << 30,
        )
        tokens: dict[int, list[int]] = {}
        try:
            for prompt in prompts:
                ids, inputs = self._embed(prompt)
                (uid,) = generator.insert([ids], max_tokens=max_tokens, prompt_kwargs=[inputs])
                tokens[uid] = []
            running = set(tokens)
            while running:
                for response in generator.next()[1]:
                    if response.finish_reason != "stop":
                        tokens[response.uid].append(response.token)
                    if response.finish_reason:
                        running.discard(response.uid)
        finally:
            generator.close()
        tokenizer = getattr(self._processor, "tokenizer", self._processor)
        return [tokenizer.decode(ids) for ids in tokens.values()]

    def _embed(self, prompt: Sequence[Part]) -> tuple[list[int], dict[str, Any]]:
        from mlx_vlm.utils import prepare_inputs, should_add_special_tokens

        content = [{"type": "text", "text": part} if isinstance(part, str) else {"type": "image"} for part in prompt]
        text = self._processor.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
        config = self._model.config
        inputs = prepare_inputs(
            self._processor,
            images=[part for part in prompt if not isinstance(part, str)] or None,
            prompts=text,
            image_token_index=config.image_token_index,
            add_special_tokens=should_add_special_tokens(config.model_type, self._processor),
        )
        extra = {name: inputs[name] for name in inputs if name not in ("input_ids", "pixel_values", "attention_mask")}
        embedded = self._model.get_input_embeddings(
            inputs["input_ids"], inputs.get("pixel_values"), mask=inputs.get("attention_mask"), **extra
        )
        extra |= {name: value for name, value in embedded.to_dict().items() if value is not None}
        ids: list[int] = inputs["input_ids"].squeeze(0).tolist()
        return ids, extra


def _groups(items: Sequence[Sequence[Part]], width: int) -> Iterator[Sequence[Sequence[Part]]]:
    for start in range(0, len(items), width):
        yield items[start : start + width]


def evaluate(generator: Generator, frames: Sequence[Frame], *, interleave: int, questions: int) -> Iterator[Score]:
    """Yield a checkpoint's scores on `frames`: records alone and interleaved, questions on the first ones, chat."""
    yield from _record_scores("single", frames, _single_records(generator, frames))
    whole = frames[: len(frames) // interleave * interleave]
    if whole:
        yield from _record_scores(
            f"interleaved by {interleave}", whole, _interleaved_records(generator, whole, interleave)
        )
    for topic in Topic if questions else ():
        yield _question_score(generator, frames[:questions], topic)
    pairs = [(question, answer) for answer, questions in CHAT.items() for question in questions]
    said = generator.answers([[question] for question, _ in pairs], _RECORD_TOKENS)
    right = sum(text == answer for text, (_, answer) in zip(said, pairs, strict=True))
    yield Score(name="chat", right=right, total=len(pairs))


def single_prompt(frame: Frame, timestamp_s: float | None) -> list[Part]:
    """Return the prompt of one frame: instructions, label, picture."""
    return [SINGLE_INSTRUCTIONS + single_label(timestamp_s), frame.image]


def interleaved_prompt(frames: Sequence[Frame], timestamps_s: Sequence[float | None]) -> list[Part]:
    """Return the prompt of several frames: labels and pictures, then the instructions."""
    parts: list[Part] = []
    for position, (frame, timestamp_s) in enumerate(zip(frames, timestamps_s, strict=True), 1):
        parts += [interleaved_label(position, timestamp_s), frame.image]
    return [*parts, interleaved_instructions(len(frames))]


def _single_records(generator: Generator, frames: Sequence[Frame]) -> list[Record | None]:
    prompts = [single_prompt(frame, i * 1.5) for i, frame in enumerate(frames)]
    return [parse_record(text) for text in generator.answers(prompts, _RECORD_TOKENS)]


def _interleaved_records(generator: Generator, frames: Sequence[Frame], count: int) -> list[Record | None]:
    prompts = [
        interleaved_prompt(frames[i : i + count], [(i + k) * 1.5 for k in range(count)])
        for i in range(0, len(frames), count)
    ]
    texts = generator.answers(prompts, count * _RECORD_TOKENS)
    return [record for text in texts for record, _ in parse_interleaved(text, count)]


def _record_scores(name: str, frames: Sequence[Frame], records: Sequence[Record | None]) -> Iterator[Score]:
    pairs = [(frame.record, record) for frame, record in zip(frames, records, strict=True)]
    alike = [(truth, record) for truth, record in pairs if record is not None]
    activity = sum(truth.activity == record.activity and truth.apps == record.apps for truth, record in alike)
    yield Score(name=f"{name}: a record", right=len(alike), total=len(pairs))
    yield Score(name=f"{name}: activity and apps", right=activity, total=len(pairs))
    yield Score(name=f"{name}: exact record", right=sum(t == r for t, r in alike), total=len(pairs))


def _question_score(generator: Generator, frames: Sequence[Frame], topic: Topic) -> Score:
    prompts: list[list[Part]] = []
    for i, frame in enumerate(frames):
        text = QUESTIONS[topic][i % len(QUESTIONS[topic])]
        # Half of them before the picture, half after it.
        prompts.append([text, frame.image] if i // len(QUESTIONS[topic]) % 2 else [frame.image, text])
    said = generator.answers(prompts, _RECORD_TOKENS)
    right = sum(text == frame.answers[topic] for text, frame in zip(said, frames, strict=True))
    return Score(name=f"question: {topic}", right=right, total=len(frames))
