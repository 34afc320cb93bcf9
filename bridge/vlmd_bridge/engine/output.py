"""An answer as it grows: its thinking kept apart from its text, ended by stop strings, handed out in pieces.

Pure text, no tokens: what it does with a text does not depend on how the text was cut into tokens.
"""

from __future__ import annotations

from collections.abc import Iterator

THINK_OPEN = "<think>"
THINK_CLOSE = "</think>"


class Answer:
    """Takes the text of one answer piece by piece.

    A thinking part begins with ``<think>`` at the start of the answer, or was opened by the prompt; behind one that
    ended, another may begin. Elsewhere the tag is text. An end tag without a beginning makes thinking of all before it,
    unless that was handed out as text already. Blanks at both ends of a thinking part, and behind it, are dropped.

    Stop strings are looked for in the text, not in the thinking. The one that is complete first ends the answer, as if
    characters came one by one.
    """

    def __init__(self, *, stop: tuple[str, ...] = (), opened: bool = False, hold: bool = False) -> None:
        """Begin.

        Args:
            stop: strings that end the answer and are no part of it.
            opened: the prompt ended inside a thinking part.
            hold: hand out no text before it is known whether an end tag will make thinking of it: for models that
                close thinking parts without opening them.
        """
        self._stop = stop
        self._hold = hold
        self._thinking = opened
        self._thought = opened
        self._text = ""
        self._reasoning = ""
        # Not decided yet: blanks at the start, or what could still become a tag or a stop string.
        self._pending = ""
        self._sent_text = 0
        self._sent_reasoning = 0
        self._finished = False
        self.stopped = False

    @property
    def text(self) -> str:
        """The text so far, without what is undecided."""
        return self._text

    @property
    def reasoning(self) -> str | None:
        """The thinking so far; None when there was none."""
        return self._reasoning.rstrip() or None

    @property
    def thinking(self) -> bool:
        """Whether the answer is inside a thinking part now."""
        return self._thinking

    def feed(self, piece: str) -> None:
        """Take the next `piece`. Nothing is taken once a stop string was found."""
        if self.stopped or not piece:
            return
        self._pending += piece
        more = True
        while more and self._pending:
            more = self._read_thinking() if self._thinking else self._read_text()

    def finish(self) -> None:
        """Decide what is undecided: nothing more comes."""
        if self._thinking:
            self._add_reasoning(self._pending)
        elif not self.stopped:
            self._add_text(self._pending)
        self._pending = ""
        self._finished = True

    def take(self) -> tuple[str, str]:
        """Return the text and the thinking that are new since the last call."""
        text = ""
        if self._finished or self.stopped or self._thought or not self._hold:
            text = self._text[self._sent_text :]
            self._sent_text = len(self._text)
        # Blanks at its end are dropped if the thinking ends here.
        decided = self._reasoning.rstrip()
        reasoning = decided[self._sent_reasoning :]
        self._sent_reasoning = max(self._sent_reasoning, len(decided))
        return text, reasoning

    def _read_thinking(self) -> bool:
        """Take what is decided of a thinking part; whether there may be more to read."""
        body = self._pending.lstrip()
        if not self._reasoning and body.startswith(THINK_OPEN):  # the prompt opened it, and the model once more
            self._pending = body[len(THINK_OPEN) :]
            return True
        end = self._pending.find(THINK_CLOSE)
        if end >= 0:
            self._add_reasoning(self._pending[:end])
            self._pending = self._pending[end + len(THINK_CLOSE) :]
            self._thinking = False
            return True
        if self._reasoning or not THINK_OPEN.startswith(body):
            kept = _undecided(self._pending, [THINK_CLOSE])
            self._add_reasoning(self._pending[: len(self._pending) - kept])
            self._pending = self._pending[len(self._pending) - kept :]
        return False

    def _read_text(self) -> bool:
        """Take what is decided of the text; whether there may be more to read."""
        if self._text and not self._stop and "<" not in self._pending:  # nearly every token, so it should be quick
            self._text += self._pending
            self._pending = ""
            return False
        if self._thought and not self._text:
            self._pending = self._pending.lstrip()
        end, mark = min(self._marks(), default=(0, ""))
        if mark:
            before, self._pending = self._pending[: end - len(mark)], self._pending[end:]
            self._at_mark(mark, before)
            return True
        body = self._pending.lstrip()
        if not self._text and THINK_OPEN.startswith(body):
            return False
        kept = _undecided(self._pending, [*self._stop, THINK_CLOSE])
        self._add_text(self._pending[: len(self._pending) - kept])
        self._pending = self._pending[len(self._pending) - kept :]
        return False

    def _marks(self) -> Iterator[tuple[int, str]]:
        """Yield what is found in `_pending`, each with the position behind it."""
        for mark in self._stop:
            if (at := self._pending.find(mark)) >= 0:
                yield at + len(mark), mark
        if not self._text:
            body = self._pending.lstrip()
            if body.startswith(THINK_OPEN):
                yield len(self._pending) - len(body) + len(THINK_OPEN), THINK_OPEN
        at = self._pending.find(THINK_CLOSE)
        if at >= 0 and self._is_orphan(self._pending[:at]):
            yield at + len(THINK_CLOSE), THINK_CLOSE

    def _is_orphan(self, before: str) -> bool:
        if self._thought:
            return not self._text and not before
        return THINK_OPEN not in self._text + before.lstrip()

    def _at_mark(self, mark: str, before: str) -> None:
        if mark == THINK_OPEN and mark not in self._stop:
            self._thinking = self._thought = True
            if self._reasoning:
                self._reasoning += "\n"
        elif mark == THINK_CLOSE and mark not in self._stop:
            self._thought = True
            if self._sent_text:
                self._add_text(before)
                return
            self._add_reasoning(self._text + before)
            self._text = ""
        else:
            self._add_text(before)
            self.stopped = True
            self._pending = ""

    def _add_text(self, piece: str) -> None:
        self._text += piece.lstrip() if self._thought and not self._text else piece

    def _add_reasoning(self, piece: str) -> None:
        self._reasoning += piece if self._reasoning.strip() else piece.lstrip()


def _undecided(text: str, marks: list[str]) -> int:
    """Return how many characters at the end of `text` could be the beginning of one of `marks`."""
    longest = min(len(text), max(map(len, marks)) - 1)
    return next((n for n in range(longest, 0, -1) if any(m.startswith(text[-n:]) for m in marks if len(m) > n)), 0)
