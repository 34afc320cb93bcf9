"""What `vlmd generate` was asked: a prompt, a conversation from a file, or both."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TextIO

import msgspec

from vlmd import Message, MessageLike
from vlmd_bridge.cli.inputs import InputError
from vlmd_protocol.errors import shorten
from vlmd_protocol.limits import MAX_FRAME_BYTES


def read_prompt(
    text: str | None, *, messages: str | None, system: str | None, stdin: TextIO
) -> str | list[MessageLike]:
    """Return the prompt, or the messages of a conversation.

    Args:
        text: the prompt, ``-`` for standard input; the last turn where there are messages before it.
        messages: a JSON file: an array of messages as on the wire, or an object that holds it as ``messages``.
        system: text of a first message to the model.
        stdin: what ``-`` stands for.

    Raises:
        InputError: there is no prompt, or the file is none.
    """
    if text == "-":
        try:
            text = stdin.read()
        except UnicodeDecodeError as error:
            raise InputError(f"The prompt on standard input is no text: {error}.") from None
        if not text.strip():
            raise InputError("The prompt on standard input is empty.")
    elif text is not None and not text.strip():
        raise InputError("The prompt is empty.")
    if text is None and messages is None:
        raise InputError("Give a prompt, `-` to read it from standard input, or --messages FILE.")
    if text is not None and messages is None and system is None:
        return text
    turns: list[MessageLike] = [] if messages is None else _read(Path(messages))
    if system is not None:
        turns.insert(0, Message("system", system))
    if text is not None:
        turns.append(Message("user", text))
    return turns


def _read(file: Path) -> list[MessageLike]:
    try:
        data = file.read_bytes()
        found = msgspec.json.decode(data)
    except (OSError, msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise InputError(f"The messages in {file} cannot be read: {error}.") from None
    if len(data) > MAX_FRAME_BYTES:
        raise InputError(f"The messages in {file} have {len(data)} bytes; a request has at most {MAX_FRAME_BYTES}.")
    if isinstance(found, Mapping):
        found = found.get("messages")
    if not isinstance(found, list) or not found:
        raise InputError(f"{file} holds no messages: a JSON array of {{'role': …, 'content': …}} is needed.")
    for at, message in enumerate(found):
        if not isinstance(message, Mapping) or not isinstance(message.get("content"), str | list):
            raise InputError(f"{file}: message {at} is none: {shorten(repr(message), 60)}.")
    return found
