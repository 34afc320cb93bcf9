"""From turns to the prompt as text, through the model's own chat template; a caller's text never acts as control."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import jinja2

from vlmd_bridge.engine.backend import SequenceError
from vlmd_bridge.engine.output import THINK_CLOSE, THINK_OPEN
from vlmd_bridge.workers.messages import Count, Picture, Start, Text, Turn

# A word joiner: without width, and no break. One inside `<|im_end|>` makes it plain text for every tokenizer and for
# processors that look for their placeholder in the rendered string.
_JOINER = "\u2060"

# Qwen adds ``<tool_call>`` and ``<think>`` without the flag that says "special".
_CONTROL_LIKE = re.compile(r"<\||</?(tool|think)")

# What a template says of itself when it refuses, in an error line.
_MAX_REASON_CHARS = 300


class ChatTemplate:
    """The template of one model. With `sees` user turns are lists of parts, else plain strings."""

    def __init__(self, processor: Any, tokenizer: Any, *, sees: bool) -> None:
        self._templated = processor if getattr(processor, "chat_template", None) else tokenizer
        self._sees = sees
        self._control = control_token_pattern(processor, tokenizer)
        source = str(getattr(self._templated, "chat_template", None) or "")
        # Whether the model was made to think. Its tokenizer does not tell: Qwen's instruct models have the tags too.
        self.thinks = THINK_CLOSE in source or "enable_thinking" in source
        # Whether it may close a thinking part that nobody opened: those that cannot be told not to think (DeepSeek-R1).
        # One that can be told opens what it closes, and its text need not wait for an end tag.
        self.may_close_only = THINK_CLOSE in source and "enable_thinking" not in source

    def render(self, prompt: Start | Count) -> str:
        """Return the prompt as text: the turns in order, ready for the answer.

        Where the template refuses or leaves out a system turn, its text begins the first user turn instead.

        Raises:
            SequenceError: the template refuses the turns.
        """
        turns = [*prompt.history, Turn(role="user", parts=prompt.parts)]
        if turns[0].role != "system":
            return self._apply(turns, thinking=prompt.thinking)
        system = self._string(turns[0])
        try:
            rendered = self._apply(turns, thinking=prompt.thinking)
            if system.strip() in rendered:
                return rendered
        except SequenceError:
            pass  # if the system turn was not the reason, the same comes again
        return self._apply(_without_system(turns), thinking=prompt.thinking)

    @staticmethod
    def opens_thinking(rendered: str) -> bool:
        """Whether the template began a thinking part for the answer."""
        return rendered.rstrip().endswith(THINK_OPEN)

    def plain(self, text: str) -> str:
        """Return `text` with a joiner inside every control token, so that none acts as one."""
        return self._control.sub(lambda match: match[0][0] + _JOINER + match[0][1:], text)

    def _apply(self, turns: Sequence[Turn], *, thinking: bool) -> str:
        messages = [{"role": turn.role, "content": self._content(turn)} for turn in turns]
        # Templates that do not know the last variable ignore it.
        options = {"add_generation_prompt": True, "tokenize": False, "enable_thinking": thinking}
        try:
            return str(self._templated.apply_chat_template(messages, **options))
        # Templates are programs: what they were not written for makes them fail in any of these ways.
        except (jinja2.TemplateError, TypeError, ValueError, LookupError, AttributeError) as error:
            reason = " ".join(str(error).split())[:_MAX_REASON_CHARS] or type(error).__name__
            raise SequenceError("template_error", f"the model's chat template refuses this prompt: {reason}") from None

    def _content(self, turn: Turn) -> str | list[dict[str, str]]:
        if turn.role != "user" or not self._sees:
            return self._string(turn)
        content: list[dict[str, str]] = []
        before = ""
        for part in turn.parts:
            if not isinstance(part, Text):
                content.append({"type": "image"})
                before = ""
                continue
            text = self.plain(part.text)
            if self._control.search(before + text):  # two harmless parts make a control token
                text = _JOINER + text
            content.append({"type": "text", "text": text})
            before += text
        return content

    def _string(self, turn: Turn) -> str:
        return self.plain("".join(part.text for part in turn.parts if isinstance(part, Text)))


def pictures_of(prompt: Start | Count) -> list[Picture]:
    """Return the pictures of all turns, in order."""
    parts = [*(part for turn in prompt.history for part in turn.parts), *prompt.parts]
    return [part for part in parts if isinstance(part, Picture)]


def check_context(prompt_tokens: int, context_tokens: int) -> None:
    """Fail when a prompt leaves no room for an answer.

    Raises:
        SequenceError: with both numbers.
    """
    if prompt_tokens >= context_tokens:
        raise SequenceError(
            "context_length_exceeded",
            f"the prompt has {prompt_tokens} tokens; the model's context holds {context_tokens}, "
            "the answer included: send fewer or smaller pictures, or less text",
        )


def control_token_pattern(processor: Any, tokenizer: Any) -> re.Pattern[str]:
    """Return a pattern of the strings that a template or processor gives a meaning.

    These are the tokenizer's special tokens, added tokens that its chat template writes (``<think>``) or that look
    like control tokens, and the placeholders the processor replaces. Other added tokens, such as Gemma's runs of line
    feeds, are ordinary text.
    """
    template = str(getattr(processor, "chat_template", None) or getattr(tokenizer, "chat_template", None) or "")
    strings: set[object] = set(tokenizer.all_special_tokens)
    for token in tokenizer.added_tokens_decoder.values():
        if token.special or _CONTROL_LIKE.match(token.content) or ("<" in token.content and token.content in template):
            strings.add(token.content)
    for owner in (processor, tokenizer):
        for name in ("image_token", "video_token", "audio_token", "boi_token", "eoi_token"):
            strings.add(getattr(owner, name, None))
    strings.add("<image>")  # split upon by mlx-vlm for processors of its own
    # Read by our own eyes in the answer and by templates in earlier turns, even where they are no tokens.
    strings |= {THINK_OPEN, THINK_CLOSE}
    found = sorted((s for s in strings if isinstance(s, str) and len(s) > 1), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, found)))


def _without_system(turns: Sequence[Turn]) -> list[Turn]:
    system, first, *rest = turns
    if first.role != "user":
        return [Turn(role="user", parts=system.parts), first, *rest]
    return [Turn(role="user", parts=(*system.parts, Text(text="\n\n"), *first.parts)), *rest]
