"""What a caller may pass as a prompt."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, TypedDict

import msgspec

from vlmd._images import Image, ImageLike, absolute_path, as_image
from vlmd_protocol.errors import InvalidRequestError
from vlmd_protocol.messages import ChatMessage, ContentBlock, ImageBlock, ImageRef, TextBlock


@dataclass(frozen=True, slots=True)
class Text:
    """Text in a message."""

    text: str


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation.

    Attributes:
        role: whose turn it is; pictures belong to the user's.
        content: text, or blocks in order: a `Text` or str is text, an `Image` or `pathlib.Path` a picture.
    """

    role: Literal["system", "user", "assistant"]
    content: str | Sequence[Text | Image | str | os.PathLike[str] | Mapping[str, Any]]


# A mapping has the form of the wire: {"role": …, "content": …}, its blocks {"type": "text", "text": …} and
# {"type": "image", "imagePath": …}.
MessageLike: TypeAlias = Message | Mapping[str, Any]
Prompt: TypeAlias = str | Sequence[MessageLike]


class PromptFields(TypedDict):
    """The fields of `PromptParams` that hold the prompt."""

    prompt: str | None
    messages: list[ChatMessage] | None
    images: list[ImageRef]


def prompt_fields(prompt: Prompt, images: Iterable[ImageLike]) -> PromptFields:
    """Return `prompt` and `images` as the daemon takes them, relative paths made absolute.

    Raises:
        TypeError: they are of other types.
        InvalidRequestError: a message has a role or blocks that there are not.
    """
    if isinstance(images, str | bytes | os.PathLike | Image):
        raise TypeError(f"`images` is one image; pass a list: [{images!r}]")
    folder = os.getcwd()  # noqa: PTH109 - joined as text
    references = [ImageRef(image_path=absolute_path(as_image(image), folder)) for image in images]
    if isinstance(prompt, str):
        return {"prompt": prompt, "messages": None, "images": references}
    if isinstance(prompt, Message | Mapping) or not isinstance(prompt, Iterable):
        raise TypeError(f"A prompt is a str or a list of messages, not {type(prompt).__name__}.")
    messages = [_message(message, at, folder) for at, message in enumerate(prompt)]
    return {"prompt": None, "messages": messages, "images": references}


def has_pictures(fields: PromptFields) -> bool:
    """Whether only a model that sees can read it."""
    return bool(fields["images"]) or any(
        isinstance(block, ImageBlock)
        for message in fields["messages"] or ()
        if not isinstance(message.content, str)
        for block in message.content
    )


def _message(message: MessageLike, at: int, folder: str) -> ChatMessage:
    if isinstance(message, Mapping):
        role, content = message.get("role"), message.get("content")
    elif isinstance(message, Message):
        role, content = message.role, message.content
    else:
        raise TypeError(f"messages[{at}] is a Message or a dict, not {type(message).__name__}.")
    if not isinstance(content, str):
        if not isinstance(content, Sequence) or isinstance(content, bytes):
            raise TypeError(f"messages[{at}].content is a str or a list of blocks, not {type(content).__name__}.")
        content = [_block(block, f"messages[{at}].content[{place}]", folder) for place, block in enumerate(content)]
    try:
        return msgspec.convert({"role": role, "content": content}, ChatMessage)
    except msgspec.ValidationError as error:
        message_text = f"messages[{at}]: {str(error).replace('`$.', '`')}"
        raise InvalidRequestError(message_text, code="invalid_params") from None


def _block(block: Any, where: str, folder: str) -> ContentBlock:
    if isinstance(block, str):
        return TextBlock(text=block)
    if isinstance(block, Text):
        return TextBlock(text=block.text)
    if isinstance(block, Mapping):
        try:
            block = msgspec.convert(dict(block), ContentBlock)
        except msgspec.ValidationError as error:
            message = f"{where}: {str(error).replace('`$.', '`')}"
            raise InvalidRequestError(message, code="invalid_params") from None
        if isinstance(block, TextBlock):
            return block
        block = Image(block.image_path)
    if not isinstance(block, Image | os.PathLike):
        raise TypeError(f"{where} is a Text, an Image, a str (text) or a Path (a picture), not {type(block).__name__}.")
    return ImageBlock(image_path=absolute_path(as_image(block), folder))
