"""The conversation that ends with a program which passes: ask, examine, answer with the findings, ask again."""

import contextlib
import hashlib
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.rewards.llm.cache import CACHE, Reply, ReplyCache, request_digest
from stages.rewards.llm.client import Client, Progress
from stages.rewards.llm.cost import Cost, Tokens, list_price
from stages.rewards.llm.errors import OFFLINE, LlmError
from stages.rewards.llm.files import json_text, write_text
from stages.rewards.llm.prompt import GenerationRequest, findings_message, first_message, system_prompt
from stages.rewards.llm.reply import one_line, program_of, text_of
from stages.rewards.llm.settings import LlmSettings

PAID = "paid.json"
"""The one file of a conversation that differs when the cache answers it."""

Findings = str
"""What is wrong with a program, for the model to read: as many lines as it takes, the first one a summary.

The cache answers a second run as long as it asks the same, so findings should hold nothing that changes by itself: no
measured times, no temporary paths.
"""

Examine = Callable[[str], Findings | None]
"""Judges the source text of a program: syntax, sandbox, verification. None where all is well."""

_NO_PROGRAM = (
    "The reply holds no program.\n"
    "Expected one code block that begins with ```python and defines `compute_reward(state, info)` at its top level."
)


@dataclass(frozen=True)
class Turn:
    """One reply with what came of it."""

    round: int  # from 1
    reply: Reply
    tokens: Tokens
    cost: Cost  # of the reply when it was new
    request_sha256: str

    def to_json(self) -> dict[str, Any]:
        return {
            "round": self.round,
            "model": self.reply.message.get("model"),
            "stop_reason": self.reply.message.get("stop_reason"),
            "request_id": self.reply.request_id,
            "request_sha256": self.request_sha256,
            "tokens": self.tokens.to_json(),
            "usd": self.cost.usd,
            "prices": self.cost.note,
        }


@dataclass(frozen=True)
class Generation:
    """A program that passed, and how it came about."""

    source: str
    folder: Path  # prompt, replies, candidates, findings, usage and digests
    turns: tuple[Turn, ...]

    @property
    def model(self) -> str:
        """The id that the last reply names."""
        return str(self.turns[-1].reply.message.get("model"))

    @property
    def sha256(self) -> str:
        """Of the program."""
        return hashlib.sha256(self.source.encode()).hexdigest()

    @property
    def tokens(self) -> Tokens:
        """Of all replies, new or not."""
        return sum((turn.tokens for turn in self.turns), Tokens())

    @property
    def cost(self) -> Cost:
        """Of all replies, as if none had come from the local cache."""
        return Cost.total(turn.cost for turn in self.turns)

    @property
    def paid(self) -> Cost:
        """Of the replies that were new."""
        return _paid(self.turns)


def generate(
    request: GenerationRequest,
    settings: LlmSettings,
    examine: Examine,
    folder: Path,
    *,
    cache: Path = CACHE,
    fresh: bool = False,
    progress: Progress | None = None,
    warn: Callable[[str], None] = lambda message: None,
    client: Client | None = None,
) -> Generation:
    """Asks for a reward program until `examine` finds nothing wrong with it, `settings.rounds` times at most.

    The folder keeps everything as it comes, also when no program passes, so it must outlive an error:

        prompt.json        the request as it was last sent: address, model, parameters, system prompt, messages
        replies/01.json    the message as the server sent it, with model, stop reason and usage; its request id
        replies/01-broken-1.json    what a stream brought before it broke, and was paid for
        candidates/01.py   the program in it
        findings/01.txt    what was wrong with it
        usage.json         tokens, cost and rounds
        digests.json       SHA-256 of each of the files above
        paid.json          which replies were new and what they cost; not those that the local cache answered

    A request that brought nothing leaves no folder.

    Args:
        folder: a new one.
        cache: of replies; an identical request is answered from it unless `fresh`. One that cannot be written is no failure.
        warn: is told of it.
        client: one of its own where None; it finds address and key in the environment.

    Raises:
        LlmError: no key, no whole reply, or no program that passes; the message names the folder once it holds a reply.
    """
    if folder.exists():
        raise LlmError(f"{folder} exists already and is never written over; remove it, or choose another folder")
    log = _Log(folder)
    try:
        return _converse(
            request, settings, examine, log, ReplyCache(cache), fresh, client or Client(settings, progress), warn
        )
    except LlmError as error:
        if not log.holds_replies:
            raise
        raise LlmError(f"{error}; replies, programs and findings are kept in {folder}") from None
    finally:
        log.close()


def _converse(
    request: GenerationRequest,
    settings: LlmSettings,
    examine: Examine,
    log: "_Log",
    cache: ReplyCache,
    fresh: bool,
    client: Client,
    warn: Callable[[str], None],
) -> Generation:
    messages = [first_message(request)]
    findings = ""
    for number in range(1, settings.rounds + 1):
        asked = client.request(system_prompt(), messages)
        log.write("prompt.json", json_text(asked))
        reply = None if fresh else cache.get(asked)
        if reply is None:
            try:
                reply = client.ask(asked)
            finally:
                log.add_broken(number, client.broken)
            log.add(number, asked, reply)
            try:
                cache.put(asked, reply)
            except LlmError as error:  # the reply itself is kept
                warn(f"{error}; the same request will be paid for again")
        else:
            log.add(number, asked, reply)
        text = text_of(reply.message)
        source = program_of(text)
        if source is None:
            findings = _NO_PROGRAM
        else:
            log.write(f"candidates/{number:02}.py", source)
            refused = examine(source)
            if refused is None:
                return Generation(source, log.folder, tuple(log.turns))
            findings = refused
        log.write(f"findings/{number:02}.txt", findings.rstrip("\n") + "\n")
        messages = [
            *messages,
            {"role": "assistant", "content": [{"type": "text", "text": text.rstrip()}]},
            findings_message(findings),
        ]
    raise LlmError(
        f"{settings.model} wrote no reward that passes in {settings.rounds} round{'s' if settings.rounds > 1 else ''};"
        f" the last was refused: {one_line(findings.splitlines()[0] if findings else '')};"
        f" raise gen_reward.rounds, ask again with --fresh, or set another gen_reward.model; {OFFLINE}"
    )


class _Log:
    """The folder, written as the conversation goes on."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.turns: list[Turn] = []
        self._made = [parent for parent in folder.parents if not parent.exists()]  # innermost first
        self._digests: dict[str, str] = {}

    @property
    def holds_replies(self) -> bool:
        """Whole or broken."""
        return any(name.startswith("replies/") for name in self._digests)

    def write(self, name: str, text: str) -> None:
        write_text(self.folder / name, text)
        self._digests[name] = hashlib.sha256(text.encode()).hexdigest()

    def add(self, number: int, asked: dict[str, Any], reply: Reply) -> None:
        self.write(f"replies/{number:02}.json", json_text(reply.to_json()))
        usage = reply.message.get("usage") or {}
        cost = list_price(str(reply.message.get("model")), usage, asked["endpoint"])
        self.turns.append(Turn(number, reply, Tokens.of(usage), cost, request_digest(asked)))
        total, paid = Cost.total(turn.cost for turn in self.turns), _paid(self.turns)
        self.write(
            "usage.json",
            json_text(
                {
                    "rounds": [turn.to_json() for turn in self.turns],
                    "tokens": sum((turn.tokens for turn in self.turns), Tokens()).to_json(),
                    "usd": total.usd,
                    "prices": total.note,
                }
            ),
        )
        new = [turn.round for turn in self.turns if not turn.reply.from_cache]
        write_text(self.folder / PAID, json_text({"rounds": new, "usd": paid.usd, "prices": paid.note}))

    def add_broken(self, number: int, messages: list[dict[str, Any]]) -> None:
        for attempt, message in enumerate(messages, 1):
            self.write(f"replies/{number:02}-broken-{attempt}.json", json_text(message))

    def close(self) -> None:
        if self.holds_replies:
            write_text(self.folder / "digests.json", json_text(self._digests))
        else:
            shutil.rmtree(self.folder, ignore_errors=True)
            with contextlib.suppress(OSError):  # one that holds something stays
                for made in self._made:
                    made.rmdir()


def _paid(turns: list[Turn] | tuple[Turn, ...]) -> Cost:
    return Cost.total(turn.cost for turn in turns if not turn.reply.from_cache)
