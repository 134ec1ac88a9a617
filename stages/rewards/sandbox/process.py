"""A reward program at work in a process of its own."""

import dataclasses
import json
import marshal
import math
import re
import weakref
from dataclasses import dataclass
from types import TracebackType
from typing import Any, NoReturn, Self

import numpy as np
from numpy.typing import NDArray

from stages.rewards.errors import RewardError, SandboxError
from stages.rewards.interface import MOMENT_FIELDS, Context, Moments, moment_dtype, moment_shape
from stages.rewards.sandbox import frames
from stages.rewards.sandbox.check import FILENAME, CheckedProgram, checked
from stages.rewards.sandbox.connection import Babbled, Connection, Died, Ended, OutOfTime
from stages.rewards.sandbox.frames import Kind
from stages.rewards.sandbox.limits import Limits
from stages.rewards.sandbox.syscalls import seccomp_filter
from stages.rewards.sandbox.values import MAX_MILESTONE

_BATCH = 512  # moments of which the child makes the states at once; more no longer fit into its caches
_VECTORISED_BATCH = 16_384
_JSON = range(2, frames.MAX_JSON + 1)
_RETURN = 'return a finite number, or (number, {"milestone": index}) with an index of 0 to 127'
_RETURN_ARRAYS = 'return a finite array (n,), or (array, {"milestone": integers (n,)}) with indices of 0 to 127'
_PURE = "compute from `state` and `info` alone"


@dataclass(frozen=True)
class Scored:
    """What a program said of n moments."""

    reward: NDArray[np.float64]  # (n,) finite
    milestone: NDArray[np.int16]  # (n,) 0 to 127; 0 where the program gives none
    seconds: float  # CPU time inside the program, all calls


@dataclass(frozen=True)
class JailStrength:
    """Which walls stand here around a reward program."""

    walls: tuple[str, ...]  # of root, user, limits, privileges, dump, seccomp
    weakness: str  # what is missing and how to get it, half a sentence; empty where nothing is

    @property
    def strong(self) -> bool:
        return not self.weakness


class RewardProcess:
    """Runs one program for one task. Use as a context manager, or `close` it.

    The program is loaded in a fresh interpreter. Every error ends that interpreter; the next `score` starts another.
    """

    def __init__(self, source: str, path: str, context: Context, limits: Limits | None = None) -> None:
        """Checks the program, starts the process, and loads the program there.

        Args:
            path: what messages call the program.

        Raises:
            RewardError: the program is refused, or fails while it is loaded.
            SandboxError: the process does not start here.
        """
        self._prepare(checked(source, path), path, context, limits, raw=False)

    @classmethod
    def _unchecked(cls, source: str, path: str, context: Context, limits: Limits | None = None) -> Self:
        """Any Python at all, with all builtins: the process is then the only wall. For the tests of that wall."""
        self = cls.__new__(cls)
        code = compile(source, FILENAME, "exec", dont_inherit=True)
        program = CheckedProgram(code, "VECTORISED = True" in source, 1, len(source.splitlines()), {})
        self._prepare(program, path, context, limits, raw=True)
        return self

    def _prepare(self, program: CheckedProgram, path: str, context: Context, limits: Limits | None, raw: bool) -> None:
        self._program, self._path, self._context, self._limits, self._raw = (
            program,
            path,
            context,
            limits or Limits(),
            raw,
        )
        self._connection: Connection | None = None
        self.walls: tuple[str, ...] = ()
        self._start()

    def score(self, moments: Moments, check_purity: bool = False) -> Scored:
        """Scores n moments.

        Args:
            moments: see `stages.rewards.interface.Moments`.
            check_purity: score them again in a fresh interpreter, last first (a vectorised program: twice, in the same
                order), and compare exactly.

        Raises:
            RewardError: the program fails, returns what is no reward, breaks its limits, or is not pure.
            ValueError: the moments are not of this context.
        """
        scored = self._score(moments, _VECTORISED_BATCH if self._program.vectorised else 0)
        if check_purity:
            self._check_purity(moments, scored)
        return scored

    def check_vectorised(self, moments: Moments) -> None:
        """Whether a vectorised program says of all moments at once what it says of each alone. Others pass.

        Raises:
            RewardError: it does not, to 9 digits.
        """
        if not self._program.vectorised:
            return
        together, alone = self._score(moments, _VECTORISED_BATCH), self._score(moments, 1)
        same = np.isclose(together.reward, alone.reward, 1e-9, 1e-12) & (together.milestone == alone.milestone)
        if not same.all():
            i = int(np.argmin(same))
            self._refuse(
                None,
                f"moment {i} gets {_answer(together, i)} among {len(same)} moments and {_answer(alone, i)} alone",
                "compute every row from itself: use axis=-1, and no mean or maximum over the moments",
            )

    def close(self) -> None:
        """Ends the process. `score` starts another."""
        if self._connection:
            self._end()
            self._connection = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _start(self) -> None:
        syscalls, _ = seccomp_filter()
        settings = {
            "context": _json_context(self._context),
            "filename": FILENAME,
            "memory": self._limits.memory_mib << 20,
            "alarm": _alarm(self._limits.wall(0)),
            "raw": self._raw,
        }
        sections = [json.dumps(settings, default=_json_array).encode(), marshal.dumps(self._program.code), syscalls]
        payload = frames.SECTIONS.pack(*map(len, sections)) + b"".join(sections)
        self._connection = connection = Connection()
        self._end = weakref.finalize(self, connection.close)
        start = self._limits.start_seconds
        try:
            connection.send(Kind.INIT, payload)
            _, walls = connection.receive({Kind.LOCKED: _JSON}, start, start)
        except Ended as ended:
            self.close()
            said = ended.said[-300:] if isinstance(ended, Died) else f"it said nothing within {start:g} s"
            raise SandboxError(
                f"the sandbox for reward programs does not start: {_plain(said)}; see docs/security.md"
            ) from None
        connection.remove_folder()
        self.walls = tuple(str(wall) for wall in json.loads(walls))
        self._receive({Kind.READY: range(1)}, 0, 0)

    def _score(self, moments: Moments, size: int) -> Scored:
        columns = _columns(moments, self._context)
        n = len(columns["step"])
        parts = [Scored(np.zeros(0), np.zeros(0, np.int16), 0.0)]
        for start in range(0, n, size if size > 1 else _BATCH):
            stop = min(n, start + (size if size > 1 else _BATCH))
            parts.append(self._score_batch({name: c[start:stop] for name, c in columns.items()}, size, start))
        return Scored(
            np.concatenate([part.reward for part in parts]),
            np.concatenate([part.milestone for part in parts]),
            sum(part.seconds for part in parts),
        )

    def _score_batch(self, columns: dict[str, NDArray[Any]], size: int, first: int) -> Scored:
        n = len(columns["step"])
        if self._connection is None:
            self._start()
        assert self._connection
        header = json.dumps({"moments": n, "size": size, "alarm": _alarm(self._limits.wall(n))}).encode() + b"\n"
        try:
            self._connection.send(Kind.SCORE, header + b"".join(column.tobytes() for column in columns.values()))
        except Ended as ended:
            self._explain(ended, n)
        length = frames.answer_length(n)
        payload = self._receive({Kind.SCORES: range(length, length + 1)}, n, first)
        offset = frames.NUMBERS.size
        (seconds,) = frames.NUMBERS.unpack_from(payload)
        reward = np.frombuffer(payload, "<f8", n, offset).astype(np.float64)
        milestone = np.frombuffer(payload, "<i2", n, offset + 8 * n).astype(np.int16)
        # The child has judged these numbers already, but nothing makes it tell the truth.
        in_range = np.isfinite(reward).all() and ((milestone >= 0) & (milestone <= MAX_MILESTONE)).all()
        if not (in_range and math.isfinite(seconds) and seconds >= 0):
            self._explain(Babbled(None), n)
        return Scored(reward, milestone, seconds)

    def _receive(self, lengths: dict[Kind, range], n: int, first: int) -> bytes:
        """The payload that was asked for; every other end is a `RewardError`. 0 moments: the program is being loaded."""
        assert self._connection
        try:
            kind, payload = self._connection.receive(
                {**lengths, Kind.FAULT: _JSON}, self._limits.cpu(n), self._limits.wall(n)
            )
        except Ended as ended:
            self._explain(ended, n)
        except BaseException:  # Ctrl-C: the answer would come to the next question
            self.close()
            raise
        if kind == Kind.FAULT:
            self._fault(payload, n, first)
        return payload

    def _explain(self, ended: Ended, n: int) -> NoReturn:
        match ended:
            case OutOfTime():
                spent = f"{ended.seconds:g} s of {ended.what}" if ended.seconds else "its time"
                doing = f"for {n} moments" if n else "to be loaded"
                self._refuse(ended.line, f"needs more than {spent} {doing}", "compute less; loop over what is short")
            case Died():
                self._refuse(
                    ended.line, f"its process {ended.how}", "write it in another way, or make its arrays smaller"
                )
        self._refuse(
            ended.line, "its process says what is no answer", "read the program: it tries to get out of the sandbox"
        )

    def _fault(self, payload: bytes, n: int, first: int) -> NoReturn:
        """What the child says is wrong with the program."""
        try:
            fields = json.loads(payload)
            kind, what, line, moment, name = (fields[key] for key in ("kind", "what", "line", "moment", "name"))
        except (ValueError, KeyError, TypeError, RecursionError):
            self._explain(Babbled(None), n)
        what = _plain(what) if isinstance(what, str) else ""
        line = line if type(line) is int else self._program.bound.get(name) if isinstance(name, str) else None
        at = f" at moment {first + moment}" if type(moment) is int and 0 <= moment < max(n, 1) else ""
        if kind == "value":
            self._refuse(line, what + at, _RETURN_ARRAYS if self._program.vectorised else _RETURN)
        elif kind == "exception":
            self._refuse(line, f"fails{at}: {what}", self._remedy(what))
        elif kind == "memory":
            self._refuse(line, f"needs more than {self._limits.memory_mib} MiB of memory{at}", "make smaller arrays")
        elif kind == "module":
            self._refuse(line, what, "bind constants alone outside of the functions: numbers, texts, tuples, arrays")
        elif kind == "load":
            self._refuse(line, f"fails while it is loaded: {what}", "mend it")
        self._explain(Babbled(None), n)

    def _remedy(self, what: str) -> str:
        """Of an exception; for a key that may be meant for the state, with the names that it has."""
        c = self._context
        names = [*c.object_names, *c.joint_names, *c.place_names]
        if re.fullmatch(r"KeyError: '\w+'", what) and what[len("KeyError: '") : -1] not in names:
            kinds = {"objects": c.object_names, "joints": c.joint_names, "places": c.place_names}
            return "mend it; the state has " + ", ".join(
                f"{kind} {' '.join(known) or '(none)'}" for kind, known in kinds.items()
            )
        return "mend it, or test for the case before"

    def _check_purity(self, moments: Moments, first: Scored) -> None:
        """One call a moment: the other order shows what is remembered. One call for all: a second call does."""
        n = len(first.reward)
        order = np.arange(n) if self._program.vectorised else np.arange(n)[::-1]
        moments = {name: np.asarray(column)[order] for name, column in moments.items()}
        self.close()
        for _ in range(2 if self._program.vectorised else 1):
            self._compare(first, self.score(moments), order)

    def _compare(self, first: Scored, again: Scored, order: NDArray[np.intp]) -> None:
        differs = (again.reward != first.reward[order]) | (again.milestone != first.milestone[order])
        if differs.any():
            k = int(np.argmax(differs))
            i = int(order[k])
            self._refuse(
                None, f"moment {i} gets {_answer(first, i)}, and {_answer(again, k)} when all are scored again", _PURE
            )

    def _refuse(self, line: int | None, finding: str, remedy: str) -> NoReturn:
        """Ends the process: after an error nothing is known about it. Where no line is known the function's is named."""
        self.close()
        known = line is not None and 1 <= line <= self._program.lines
        raise RewardError(self._path, line if known else self._program.function_line, finding, remedy) from None


def jail_strength() -> JailStrength:
    """Starts the sandbox with a small program and reports which walls stand on this machine.

    Raises:
        SandboxError: it does not start.
    """
    context = Context("", (), (), (), (), (), 1)
    with RewardProcess("def compute_reward(state, info):\n    return 0.0\n", "reward.py", context) as process:
        walls = process.walls
    _, why = seccomp_filter()
    lacking = [name for name in ("user", "limits", "privileges", "dump") if name not in walls]
    if "seccomp" not in walls:
        return JailStrength(walls, why or "the kernel refuses the filter of system calls")
    return JailStrength(walls, f"without {', '.join(lacking)}; see docs/security.md" if lacking else "")


def _columns(moments: Moments, context: Context) -> dict[str, NDArray[Any]]:
    if set(moments) != set(MOMENT_FIELDS):
        raise ValueError(f"moments have {sorted(moments)}, expected {sorted(MOMENT_FIELDS)}")
    columns = {name: np.ascontiguousarray(moments[name], moment_dtype(name)) for name in MOMENT_FIELDS}
    n = len(columns["step"])
    for name, column in columns.items():
        if column.shape != (n, *moment_shape(name, context)):
            raise ValueError(f"{name} has the shape {column.shape}, expected {(n, *moment_shape(name, context))}")
    return columns


def _json_context(context: Context) -> dict[str, Any]:
    fields = {field.name: getattr(context, field.name) for field in dataclasses.fields(context)}
    poses = [{**pose, "object_pos": dict(pose["object_pos"])} for pose in context.key_poses]
    return fields | {"key_poses": poses}


def _json_array(value: object) -> object:
    return np.asarray(value).tolist()


def _alarm(seconds: float) -> int:
    """After which the child ends itself, should the parent have died."""
    return math.ceil(seconds) + 5


def _answer(scored: Scored, i: int) -> str:
    return f"reward {scored.reward[i]:.17g} and milestone {scored.milestone[i]}"


def _plain(text: str) -> str:
    """One line of printable characters, not too long."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())[:300]
