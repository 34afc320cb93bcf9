"""Prompts that begin alike share the prefill of what they share, and never more than that."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from tests.engine.conftest import TinyPath
from tests.support.engines import Pictures, ask, run_alone, vision_backend
from vlmd_bridge.demo import MODEL_PATH
from vlmd_bridge.engine.backend import Event
from vlmd_bridge.engine.batch import Row
from vlmd_bridge.engine.rows.prefix import _KEPT
from vlmd_bridge.engine.vision import VisionBackend
from vlmd_bridge.workers.messages import Finished, Start, Text, Turn

pytestmark = pytest.mark.model

INSTRUCTIONS = "Say what this frame shows and what the user does in it.\n"


def logprobs(backend: VisionBackend, start: Start, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    rows: list[Row] = []
    with monkeypatch.context() as patch:
        event = backend._event

        def keep(row: Row) -> Event:
            rows.append(row)
            return event(row)

        patch.setattr(backend, "_event", keep)
        run_alone(backend, start)
    prompt = rows[0].prompt
    assert prompt is not None
    return [float(str(logprob.item())) for logprob, _ in prompt.control.trace[: len(rows[0].tokens)]]


@pytest.mark.parametrize("name", ["qwen3_vl", "qwen2_5_vl", "qwen3_5"])
def test_an_image_is_never_shared(name: str, tiny_path: TinyPath, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two prompts of the very same tokens: the pixels alone differ, and image tokens do not show them."""
    pictures = Pictures()
    with vision_backend(tiny_path(name), pictures, trace=True) as backend:
        side = 84 if name == "qwen2_5_vl" else 96
        starts = [
            ask(seq, INSTRUCTIONS, pictures.random(seq, side, side), " And then some words behind it.", max_tokens=8)
            for seq in range(3)
        ]
        prefixes = backend.prefixes
        assert prefixes is not None
        shared = [logprobs(backend, start, monkeypatch) for start in starts]
        before_image = backend.prompts.embed(starts[0]).token_ids.index(min(prefixes._image_token_ids))
        assert 32 < prefixes.saved_tokens <= before_image
        backend.batch.close()
        backend.prefixes = None
        for start, got in zip(starts, shared, strict=True):
            assert np.allclose(got, logprobs(backend, start, monkeypatch), atol=1e-3)


def test_what_is_kept_is_bounded_and_given_back(tiny_path: TinyPath) -> None:
    with vision_backend(tiny_path("qwen3_vl"), Pictures()) as backend:
        prefixes = backend.prefixes
        assert prefixes is not None
        for topic in range(_KEPT + 2):
            for end in ("one", "two", "three"):
                run_alone(backend, ask(1, f"{topic} " * 40, end, max_tokens=1))
        assert len(prefixes) == _KEPT
        assert prefixes.saved_tokens > (_KEPT + 2) * 40
        backend.idle()
        assert not len(prefixes)


def test_short_and_unlike_prompts_share_nothing(tiny_path: TinyPath) -> None:
    with vision_backend(tiny_path("qwen3_vl"), Pictures()) as backend:
        prefixes = backend.prefixes
        assert prefixes is not None
        for text in ("Go", "Go", "Something else entirely, and rather long at that.", "No."):
            run_alone(backend, ask(1, text, max_tokens=1))
        assert prefixes.saved_tokens == 0 and not len(prefixes)


def test_the_same_prompt_again(tiny_path: TinyPath, monkeypatch: pytest.MonkeyPatch) -> None:
    """All but its last two tokens are known, and the answer is the same."""
    with vision_backend(tiny_path("qwen3_vl"), Pictures(), trace=True) as backend:
        answers = [logprobs(backend, ask(1, INSTRUCTIONS, max_tokens=6), monkeypatch) for _ in range(4)]
        assert all(np.allclose(answer, answers[0], atol=1e-3) for answer in answers)
        assert backend.prefixes is not None and backend.prefixes.saved_tokens > 100


@pytest.mark.parametrize("off", [(), ("own_decode",)], ids=["own_decode", "mlx_vlm"])
@pytest.mark.parametrize("name", ["qwen3_vl", "qwen2_5_vl", "qwen3_5"])
def test_a_prefix_goes_on_from_a_shorter_one(
    name: str, off: tuple[str, ...], tiny_path: TinyPath, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two jobs that begin alike and take turns."""
    pictures = Pictures()
    with vision_backend(tiny_path(name), pictures, trace=True, off=off) as backend:
        side = 84 if name == "qwen2_5_vl" else 96
        starts = [
            ask(seq, INSTRUCTIONS, f"{'ab'[seq % 2]} and so on, " * 12, pictures.random(seq, side, side), max_tokens=8)
            for seq in range(6)
        ]
        prefixes = backend.prefixes
        assert prefixes is not None
        shared = [logprobs(backend, start, monkeypatch) for start in starts]
        short, *longer = sorted(len(token_ids) for token_ids in prefixes._prefixes)
        assert len(longer) == 2 and prefixes.saved_tokens == 2 * short + sum(longer)
        backend.batch.close()
        backend.prefixes = None
        for start, got in zip(starts, shared, strict=True):
            assert np.allclose(got, logprobs(backend, start, monkeypatch), atol=1e-3)


@pytest.mark.parametrize("off", [(), ("own_decode",)], ids=["own_decode", "mlx_vlm"])
def test_a_prompt_that_a_conversation_began_with(off: tuple[str, ...]) -> None:
    """What the first prompt and the next turn share is the whole first prompt; asked again, something is left of it."""
    first = ask(1, INSTRUCTIONS * 2, max_tokens=4)
    asked = Turn(role="user", parts=first.parts)
    answered = Turn(role="assistant", parts=(Text(text="Nothing much."),))
    second = msgspec.structs.replace(ask(2, "And then?", max_tokens=4), history=(asked, answered))
    with vision_backend(MODEL_PATH, Pictures(), off=off) as backend:
        assert backend.prefixes is not None
        began = backend.prompts.embed(first).token_ids
        assert backend.prompts.embed(second).token_ids[: len(began)] == began
        answers = [run_alone(backend, start) for start in (first, second, first)]
        assert backend.prefixes.saved_tokens == 0
        assert isinstance(answers[0], Finished) and isinstance(answers[2], Finished)
        assert answers[2].text == answers[0].text
