"""The turns of a prompt: checked, its pictures collected, and put together for the engine once those are there."""

from __future__ import annotations

from dataclasses import dataclass

from vlmd_bridge.jobs.work import Frame
from vlmd_bridge.workers.messages import Part, Text, Turn
from vlmd_protocol.messages import ChatMessage, ImageBlock, ImageRef, PromptParams, TextBlock


class BadConversation(Exception):
    """The turns make no prompt; the message names the field."""


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages, the last of them the user's, and the pictures in them, in order."""

    messages: tuple[ChatMessage, ...]
    images: tuple[ImageRef, ...]

    @classmethod
    def from_params(cls, params: PromptParams) -> Conversation:
        """Check `params` and collect the pictures.

        Raises:
            BadConversation: both or neither of prompt and messages, no user turn at the end, a picture outside a user
                turn, or an empty turn.
        """
        if (params.prompt is None) == (params.messages is None):
            raise BadConversation("Give either `params.prompt` or `params.messages`.")
        if params.prompt is not None:
            messages = [ChatMessage(role="user", content=params.prompt)]
        else:
            messages = list(params.messages or ())
            _check(messages)
        leading = [ImageBlock(image_path=image.image_path) for image in params.images]
        messages[-1] = ChatMessage(role="user", content=[*leading, *_blocks(messages[-1])])
        images = [
            ImageRef(image_path=block.image_path)
            for message in messages
            for block in _blocks(message)
            if isinstance(block, ImageBlock)
        ]
        return cls(tuple(messages), tuple(images))

    def turns(self, frames: list[Frame]) -> tuple[tuple[Turn, ...], tuple[Part, ...]]:
        """Return the earlier turns and the parts of the last one; `frames` are the pictures, in order."""
        pictures = iter(frames)

        def part(block: TextBlock | ImageBlock) -> Part:
            if isinstance(block, TextBlock):
                return Text(text=block.text)
            picture = next(pictures).picture
            assert picture is not None
            return picture

        turns = [Turn(role=m.role, parts=tuple(part(block) for block in _blocks(m))) for m in self.messages]
        return tuple(turns[:-1]), turns[-1].parts


def _blocks(message: ChatMessage) -> list[TextBlock | ImageBlock]:
    return [TextBlock(text=message.content)] if isinstance(message.content, str) else message.content


def _check(messages: list[ChatMessage]) -> None:
    if messages[-1].role != "user":
        raise BadConversation("The last of `params.messages` must be the user's; nothing is there to be answered.")
    for i, message in enumerate(messages):
        where = f"`params.messages[{i}].content`"
        blocks = _blocks(message)
        if not any(isinstance(block, ImageBlock) or block.text for block in blocks):
            raise BadConversation(f"{where} is empty.")
        if message.role != "user" and any(isinstance(block, ImageBlock) for block in blocks):
            raise BadConversation(f"{where} holds a picture, in a message of the {message.role}; only the user's may.")
