"""Why a model cannot be used."""

from __future__ import annotations

from typing import Literal, TypeAlias

ModelErrorCode: TypeAlias = Literal[
    "model_not_found", "model_invalid", "model_incomplete", "model_unsupported", "model_needs_code"
]


class ModelError(Exception):
    """A model cannot be used; `code` says in which way, the message what to do about it."""

    def __init__(self, code: ModelErrorCode, message: str) -> None:
        super().__init__(message)
        self.code: ModelErrorCode = code
