"""Promise: 40 schema-constrained records validate, none cut off, on the demo model and on two random tiny models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.conftest import StartDaemon
from tests.support.daemon import results
from tests.support.json_schema import validates
from vlmd_bridge.demo import recording

FRAMES = 40
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "summary": {"type": "string"},
        "apps": {"type": "array", "items": {"type": "string"}},
        "people": {"type": "integer", "minimum": 0, "maximum": 20},
        "theme": {"enum": ["dark", "light"]},
    },
    "required": ["summary", "apps", "people", "theme"],
    "additionalProperties": False,
}

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Paths of frames of a synthetic recording."""
    folder = tmp_path_factory.mktemp("frames")
    paths = []
    for i, frame in enumerate(recording(40, FRAMES, size=(640, 400))):
        paths.append(str(folder / f"{i}.png"))
        frame.image.save(paths[-1])
    return paths


@pytest.mark.parametrize("name", ["demo", "qwen3_vl", "qwen2_5_vl"])
def test_40_records_validate_and_none_is_cut_off(
    start_daemon: StartDaemon, frames: list[str], tmp_path: Path, name: str
) -> None:
    model = name
    if name != "demo":
        from tests.support.tiny_models import TINY_VISION_MODELS, build_tiny_model  # imports MLX

        tiny = next(tiny for tiny in TINY_VISION_MODELS if tiny.name == name)
        model = str(build_tiny_model(tiny, tmp_path / name))
    daemon = start_daemon(model=model).wait_ready()
    described = results(
        daemon.ask("describe_images", images=[{"imagePath": path} for path in frames], schema=SCHEMA, maxTokens=1000)
    )
    assert [result.get("code") for result in described] == [None] * FRAMES
    assert all(validates(result["record"], SCHEMA) for result in described)
