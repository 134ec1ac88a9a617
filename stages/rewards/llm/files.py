"""Files that nobody reads half-written."""

import contextlib
import json
import os
import secrets
from pathlib import Path

from stages.rewards.llm.errors import LlmError


def write_text(path: Path, text: str) -> None:
    """Writes a text file by rename, and the folders above it.

    Raises:
        LlmError: the system refuses; in one line.
    """
    partial = path.with_name(f".{path.name}.partial-{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(text, encoding="utf-8", newline="\n")
        partial.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):  # where the folder is none, it is not there either
            partial.unlink()
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise LlmError(f"cannot write {path} ({reason}); make room, or choose another folder") from None


def json_text(data: object) -> str:
    """JSON as it is written everywhere: sorted keys, two spaces, newline at the end."""
    return json.dumps(data, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
