"""Limits of the wire protocol. `hello` advertises the ones a client can run into."""

from __future__ import annotations

from typing import Final

# Grows only when a change would break a client that follows the evolution rules; see SPEC.md.
PROTOCOL_VERSION: Final = 1

# A request for 100,000 frames with long paths fits; a picture does not belong in a line.
MAX_FRAME_BYTES: Final = 32 * 1024 * 1024

# Largest integer that every JSON reader keeps exactly (IEEE 754 double).
MAX_SAFE_INTEGER: Final = 2**53 - 1

# An id is echoed on every line of its answer.
MAX_ID_CHARS: Final = 128

# Frames of one request. A day at one frame a second is 86,400.
MAX_IMAGES: Final = 1_000_000

# Frames that one streamed line carries.
MAX_BATCH_SIZE: Final = 256
DEFAULT_BATCH_SIZE: Final = 4

# ADR-006's token budget of one batch.
DEFAULT_MAX_TOKENS: Final = 2000
MAX_TOKENS: Final = 131_072

# A frame gets at least this much of a batch's budget in parallel mode: a record is about 100 tokens.
MIN_TOKENS_PER_FRAME: Final = 128

MAX_PROMPT_CHARS: Final = 1_000_000
MAX_SCHEMA_BYTES: Final = 64 * 1024

# A generation that names no budget.
DEFAULT_GENERATE_TOKENS: Final = 512
MAX_MESSAGES: Final = 4096
MAX_GENERATE_IMAGES: Final = 64

# Each is looked for in the text after every token.
MAX_STOP_STRINGS: Final = 16
MAX_STOP_CHARS: Final = 200

# A pattern is compiled into an automaton; llguidance bounds the states, this the text.
MAX_REGEX_CHARS: Final = 16_384

# Requests that wait on a connection that never said `hello`, where one runs at a time.
MAX_WAITING_PLAIN: Final = 16

# Requests in flight on a connection that said `hello`.
MAX_IN_FLIGHT: Final = 64

# What an error message repeats of the input.
MAX_ECHO_CHARS: Final = 80
