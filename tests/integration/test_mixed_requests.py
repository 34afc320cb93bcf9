"""Promise: whatever runs beside it, a request gets the answer it gets alone. Real engines, 200 mixed requests."""

from __future__ import annotations

import json
import random
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import StartDaemon
from tests.support.daemon import Connection, results
from vlmd_bridge.demo import recording

REQUESTS = 200
CONNECTIONS = 8
SCHEMA = {
    "type": "object",
    "properties": {
        "app": {"type": "string", "maxLength": 12},
        "people": {"type": "integer", "minimum": 0, "maximum": 9},
    },
    "required": ["app", "people"],
    "additionalProperties": False,
}

pytestmark = pytest.mark.model


def _kinds(paths: list[str]) -> list[tuple[str, dict[str, Any]]]:
    """Distinct requests: text, vision, seeded, schema, frames."""
    kinds: list[tuple[str, dict[str, Any]]] = []
    for i in range(4):
        kinds.append(("generate", {"prompt": f"Tell me about number {i}.", "maxTokens": 16, "model": "TEXT"}))
        kinds.append(
            ("generate", {"prompt": f"Warm {i}.", "maxTokens": 16, "temperature": 0.9, "seed": i, "model": "TEXT"})
        )
        image = {"imagePath": paths[i]}
        kinds.append(("generate", {"prompt": "What app is this?", "images": [image], "maxTokens": 16}))
        kinds.append(
            ("generate", {"prompt": "Which?", "images": [image], "maxTokens": 16, "temperature": 0.8, "seed": 7 + i})
        )
        kinds.append(("generate", {"prompt": "Describe it.", "images": [image], "schema": SCHEMA, "maxTokens": 64}))
        frames = [{"imagePath": path, "timestamp": 1.5 * k} for k, path in enumerate(paths[i : i + 3])]
        kinds.append(("describe_images", {"images": frames, "batchSize": 2}))
    return kinds


def _answer(lines: list[dict[str, Any]]) -> Any:
    last = lines[-1]
    assert "error" not in last, last
    if "text" in last:
        assert "".join(line.get("delta", "") for line in lines) == last["text"]
        return last["text"], last["finishReason"], last.get("reasoning")
    return [(frame["index"], frame["description"], frame["apps"], frame["activity"]) for frame in results(lines)]


def test_200_mixed_requests_from_8_connections_equal_their_solo_answers(
    start_daemon: StartDaemon, tmp_path: Path
) -> None:
    from tests.support.tiny_text_models import TINY_TEXT_MODELS, build_tiny_text_model  # imports MLX

    paths = []
    for i, frame in enumerate(recording(5, 6)):
        paths.append(str(tmp_path / f"{i}.png"))
        frame.image.save(paths[-1])
    text_model = str(build_tiny_text_model(TINY_TEXT_MODELS[0], tmp_path / "text"))
    daemon = start_daemon("--text-model", text_model, model="demo").wait_ready()
    kinds = [
        (method, {**params, "model": text_model} if params.get("model") == "TEXT" else params)
        for method, params in _kinds(paths)
    ]
    alone = [_answer(daemon.ask(method, **params)) for method, params in kinds]
    for (_, params), answer in zip(kinds, alone, strict=True):
        if "schema" in params:
            assert set(json.loads(answer[0])) == {"app", "people"}
    problems: list[str] = []
    cancelled = [0]

    def work(number: int) -> None:
        rng = random.Random(number)
        with Connection(daemon.socket_path, timeout_s=120) as connection:
            connection.ask("hello", "hello")
            for i in range(REQUESTS // CONNECTIONS):
                kind = rng.randrange(len(kinds))
                method, params = kinds[kind]
                connection.send(i, method, **params)
                cancel = rng.random() < 0.15
                if cancel:
                    connection.send(f"cancel {i}", "cancel", target=i)
                lines: list[dict[str, Any]] = []
                while not any(line.get("done") and line["id"] == i for line in lines):
                    lines.append(connection.line())
                if cancel and not any(line.get("id") == f"cancel {i}" for line in lines):
                    lines += connection.answer()
                own = [line for line in lines if line.get("id") == i]
                if own[-1].get("code") == "cancelled":
                    cancelled[0] += 1
                elif _answer(own) != alone[kind]:
                    problems.append(f"{method} {params}: {_answer(own)} alone {alone[kind]}")

    threads = [threading.Thread(target=work, args=(number,)) for number in range(CONNECTIONS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(180)
        assert not thread.is_alive()
    print(f"\n{REQUESTS} requests, {cancelled[0]} of them cancelled, {len(problems)} other than alone")
    assert not problems
    assert cancelled[0] > 0
