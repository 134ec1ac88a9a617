"""What goes over the pipes between the two processes. Imported on both sides, so it needs the standard library alone.

A frame is a header (magic, kind, number of the request, length) and so many bytes. The child's frames hold raw numbers or
bounded JSON; nothing that it says is ever unpickled or evaluated.
"""

import struct
from enum import IntEnum

HEADER = struct.Struct("<4sBIQ")
MAGIC = b"TGR1"
SECTIONS = struct.Struct("<QQQ")  # of the first frame: lengths of JSON, code and filter
NUMBERS = struct.Struct("<d")  # seconds, before n float64 rewards and n int16 milestones
PER_MOMENT = 8 + 2  # bytes of an answer
MAX_JSON = 16_384


class Kind(IntEnum):
    """parent -> child: INIT, SCORE; child -> parent: LOCKED, READY, SCORES, FAULT."""

    INIT = 1
    SCORE = 2
    LOCKED = 3  # the jail is shut; JSON: its walls
    READY = 4  # the program is loaded; empty
    SCORES = 5
    FAULT = 6  # JSON: kind, line, moment, what


def frame(kind: Kind, request: int, payload: bytes) -> bytes:
    return HEADER.pack(MAGIC, kind, request, len(payload)) + payload


def answer_length(moments: int) -> int:
    """Bytes of the payload of SCORES."""
    return NUMBERS.size + moments * PER_MOMENT
