"""What a reply says: its text, and the program in it."""

import ast
import re
from collections.abc import Mapping
from typing import Any

from stages.rewards.interface import FUNCTION
from stages.rewards.llm.errors import OFFLINE, LlmError

# A fence opens with three or more backticks or tildes and closes with at least as many of the same.
_FENCE = re.compile(r"^[ \t]*(?P<fence>`{3,}|~{3,})[^\n`]*\n(?P<body>.*?)^[ \t]*(?P=fence)[`~]*[ \t]*$", re.M | re.S)
_OPEN = re.compile(r"^[ \t]*(`{3,}|~{3,})[^\n`]*\n", re.M)
_DEFINES = re.compile(rf"^(async\s+)?def\s+{FUNCTION}\b", re.M)


def text_of(message: Mapping[str, Any]) -> str:
    """The text of a whole message of the API, without what the model thought.

    Raises:
        LlmError: the model refused, was cut off, or said nothing.
    """
    stop = message.get("stop_reason")
    if stop == "refusal":
        details = message.get("stop_details") or {}
        why = details.get("explanation") or details.get("category")
        raise LlmError(
            f"{message.get('model')} refused to write the reward{f' ({one_line(why)})' if why else ''};"
            f" ask again with --fresh, or set another gen_reward.model; {OFFLINE}"
        )
    if stop == "max_tokens":
        spent = (message.get("usage") or {}).get("output_tokens")
        raise LlmError(
            f"the reply was cut off after {spent} tokens; raise gen_reward.max_tokens"
            " (what a model thinks before it writes counts too)"
        )
    if stop == "model_context_window_exceeded":
        raise LlmError(
            "the conversation outgrew the model's context window; lower gen_reward.rounds, or set another gen_reward.model"
        )
    text = "".join(block.get("text") or "" for block in message.get("content") or [] if block.get("type") == "text")
    if not text.strip():
        raise LlmError(
            f"the reply is empty (stop reason {stop}); ask again with --fresh, or set another gen_reward.model; {OFFLINE}"
        )
    return text


def program_of(text: str) -> str | None:
    """The source text of the program in a reply, or None when there is none.

    Of several code blocks it is the last that defines the function: models first sketch, then write. A reply without
    blocks is taken as a whole where it parses as Python, so a program with broken syntax is found only in a block.
    """
    blocks = [match["body"] for match in _FENCE.finditer(text)]
    if rest := _unclosed(text):
        blocks.append(rest)
    for block in reversed(blocks):
        if _DEFINES.search(source := _dedented(block)):
            return source
    if not blocks and _DEFINES.search(text) and _parses(text):
        return text.strip("\n") + "\n"
    return None


def one_line(text: object, limit: int = 300) -> str:
    """Whitespace, line breaks and control characters become single spaces; long texts end in an ellipsis."""
    flat = " ".join("".join(c if c.isprintable() else " " for c in str(text)).split())
    return flat if len(flat) <= limit else flat[: limit - 1] + "…"


def _unclosed(text: str) -> str:
    """What follows a fence that never closes: the closing one is what a model forgets."""
    rest = _FENCE.sub("", text)
    match = _OPEN.search(rest)
    return rest[match.end() :] if match else ""


def _dedented(block: str) -> str:
    """Blocks inside a list are indented as a whole."""
    lines = block.splitlines()
    margin = min((len(line) - len(line.lstrip()) for line in lines if line.strip()), default=0)
    return "\n".join(line[margin:] for line in lines).strip("\n") + "\n"


def _parses(text: str) -> bool:
    try:
        ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True
