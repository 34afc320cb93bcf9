"""A synthetic frame and what is true of it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from PIL import Image

from vlmd_bridge.demo.canvas import Theme
from vlmd_bridge.record import Record

_NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


class Topic(StrEnum):
    """What the demo model can be asked in plain words about one frame."""

    APP = "app"
    PEOPLE = "people"
    COLOR = "color"
    THEME = "theme"
    ACTION = "action"


@dataclass(frozen=True, kw_only=True, slots=True)
class Scene:
    """What a screen draws and what it says about it."""

    record: Record
    theme: Theme
    accent: str
    people: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Frame:
    """One synthetic screenshot with its ground truth.

    Attributes:
        image: The picture, RGB.
        kind: The name of the screen it shows, one of `KINDS`.
        record: What a model should say of it.
        answers: The answer to each plain question.
    """

    image: Image.Image
    kind: str
    record: Record
    answers: dict[Topic, str]


def count_of(number: int, noun: str, plural: str | None = None) -> str:
    """Return ``two tabs``, ``one tab`` or ``no tabs``."""
    return f"{_NUMBERS[number]} {noun if number == 1 else plural or noun + 's'}"


def plain_answers(scene: Scene) -> dict[Topic, str]:
    """Return the answer to each plain question about `scene`."""
    people = count_of(scene.people, "person", "people").capitalize()
    return {
        Topic.APP: f"{' and '.join(scene.record.apps)}.",
        Topic.PEOPLE: f"{people}." if scene.people else "There are no people in the picture.",
        Topic.COLOR: f"{scene.accent.capitalize()}.",
        Topic.THEME: f"It is {scene.theme.name}.",
        Topic.ACTION: f"{scene.record.description}.",
    }
