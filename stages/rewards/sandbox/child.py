"""The process that a program runs in. Started by `process.RewardProcess` with nothing but numpy on its path."""

import os

# Before numpy is loaded. The environment is emptied afterwards.
os.environ.update({"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"})

import builtins
import faulthandler
import gc
import json
import marshal
import math
import signal
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from types import CodeType, FrameType, TracebackType
from typing import Any, NoReturn

import numpy as np

from stages.rewards.interface import FUNCTION, MOMENT_FIELDS, Context, Moments, moment_dtype, moment_shape
from stages.rewards.sandbox import frames, jail, values
from stages.rewards.sandbox.frames import Kind
from stages.rewards.sandbox.freeze import NotConstant, freeze_module
from stages.rewards.states import batched, each

REQUESTS, ANSWERS, ERRORS = 0, 1, 2  # descriptors
_reserve: list[bytearray] = [bytearray(1 << 20)]  # let go when memory has run out, so that this can still be said


class Fault(Exception):
    """What ends a batch; goes to the parent as JSON."""

    def __init__(
        self, kind: str, what: str, line: int | None = None, moment: int | None = None, name: str | None = None
    ) -> None:
        """`name` is a variable of the module, by which the parent finds the line."""
        super().__init__(what)
        self.fields = {"kind": kind, "what": what[:400], "line": line, "moment": moment, "name": name}


def main() -> NoReturn:
    """Locks the process, loads the program, answers requests until the pipe is closed."""
    request, payload = _read(Kind.INIT)
    sizes = frames.SECTIONS.unpack_from(payload)
    start = frames.SECTIONS.size
    parts = []
    for size in sizes:
        parts.append(payload[start : start + size])
        start += size
    settings = json.loads(parts[0])
    context = _context(settings["context"])
    filename = settings["filename"]
    code: CodeType = marshal.loads(parts[1])
    _warm_up(context)
    sys.path.clear()
    sys.meta_path.clear()
    sys.setrecursionlimit(400)
    walls = jail.lock(settings["memory"], parts[2])
    _write(Kind.LOCKED, request, json.dumps(walls).encode())
    del payload, parts
    try:
        signal.alarm(settings["alarm"])
        function = _load(code, filename, settings["raw"])
        signal.alarm(0)
    except Fault as fault:
        _fail(request, fault)
    _write(Kind.READY, request, b"")
    while True:
        request, payload = _read(Kind.SCORE)
        settings = json.loads(payload[: payload.index(b"\n")])
        signal.alarm(settings["alarm"])
        try:
            moments = _moments(payload, payload.index(b"\n") + 1, settings["moments"], context)
            answer = _score(function, context, moments, settings["size"], filename)
        except Fault as fault:
            _fail(request, fault)
        signal.alarm(0)
        _write(Kind.SCORES, request, answer)


def _load(code: CodeType, filename: str, raw: bool) -> Callable[..., Any]:
    allowed = vars(builtins) if raw else _builtins()
    namespace: dict[str, Any] = {"__builtins__": allowed, "__name__": "reward"}
    try:
        exec(code, namespace)
        if not raw:
            freeze_module(namespace)
        function: Callable[..., Any] = namespace[FUNCTION]
        return function
    except NotConstant as error:
        raise Fault("module", f"the module keeps {error.name!r}, of type {error.what}", name=error.name) from None
    except MemoryError as error:
        raise _out_of_memory(error, filename, None) from None
    except Exception as error:
        raise Fault("load", _described(error), _line(error.__traceback__, filename)) from None


def _builtins() -> dict[str, Any]:
    """What a checked program may call. Wider names were refused already; they are not there either."""
    names = """ArithmeticError AssertionError AttributeError IndexError KeyError LookupError OverflowError TypeError ValueError
        ZeroDivisionError abs all any bool dict divmod enumerate float int isinstance len list max min next range reversed
        round sorted sum tuple zip"""
    return {name: getattr(builtins, name) for name in names.split()} | {"__import__": _import}


def _import(name: str, *_: object) -> Any:
    """What is loaded already. numpy's C code imports its own modules through this when a method is first called; a program
    cannot name another module than numpy and math, for the rules judge its imports."""
    return sys.modules[name]


def _score(function: Callable[..., Any], context: Context, moments: Moments, size: int, filename: str) -> bytes:
    """Size 0: one state a moment; else a vectorised program is called for so many moments at a time."""
    n = len(moments["step"])
    if size == 0:
        rewards, milestones, seconds = _score_each(function, context, moments, filename)
    else:
        rewards, milestones, seconds = np.zeros(n), np.zeros(n, np.int16), 0.0
        for start in range(0, n, size):
            part = {name: array[start : start + size] for name, array in moments.items()}
            stop = start + len(part["step"])
            rewards[start:stop], milestones[start:stop], took = _score_many(function, context, part, filename, start)
            seconds += took
    return frames.NUMBERS.pack(seconds) + rewards.astype("<f8").tobytes() + milestones.astype("<i2").tobytes()


def _score_each(
    function: Callable[..., Any], context: Context, moments: Moments, filename: str
) -> tuple[Any, Any, float]:
    index = 0
    answers: list[tuple[float, int]] = []
    add, judge = answers.append, values.one
    gc.disable()  # a batch has too many states for it, and a program makes no cycles
    state = None
    try:
        states = list(each(context, moments))
        start = time.process_time()
        for state in states:
            add(judge(function(*state)))
        seconds = time.process_time() - start
    except values.BadValue as bad:
        index = len(answers)
        raise Fault("value", bad.what, _return_line(function, state, filename), index) from None
    except MemoryError as error:
        raise _out_of_memory(error, filename, len(answers)) from None
    except Exception as error:
        raise Fault("exception", _described(error), _line(error.__traceback__, filename), len(answers)) from None
    finally:
        gc.enable()
    reward, milestone = zip(*answers, strict=True)
    return np.array(reward, np.float64), np.array(milestone, np.int16), seconds


def _score_many(
    function: Callable[..., Any], context: Context, moments: Moments, filename: str, first: int
) -> tuple[Any, Any, float]:
    state = batched(context, moments)
    try:
        start = time.process_time()
        answer = function(*state)
        seconds = time.process_time() - start
        rewards, milestones = values.many(answer, len(moments["step"]))
    except values.BadValue as bad:
        moment = None if bad.index is None else first + bad.index
        raise Fault("value", bad.what, _return_line(function, state, filename), moment) from None
    except MemoryError as error:
        raise _out_of_memory(error, filename, None) from None
    except Exception as error:
        raise Fault("exception", _described(error), _line(error.__traceback__, filename)) from None
    return rewards, milestones, seconds


def _return_line(function: Callable[..., Any], state: Any, filename: str) -> int | None:
    """Calls once more, watching for the line that the function returns from: a pure function takes the same way again."""
    lines: list[int] = []
    code = getattr(function, "__code__", None)

    def watch(frame: FrameType, event: str, _: Any) -> Any:
        if frame.f_code is not code:
            return None
        if event == "return":
            lines.append(frame.f_lineno)
        return watch

    try:
        sys.settrace(watch)
        function(*state)
    except BaseException:
        return None
    finally:
        sys.settrace(None)
    return lines[-1] if lines else None


def _out_of_memory(error: MemoryError, filename: str, moment: int | None) -> Fault:
    line = _line(error.__traceback__, filename)
    _reserve.clear()
    error.__traceback__ = None  # with it go the program's variables
    return Fault("memory", "", line, moment)


def _line(traceback: TracebackType | None, filename: str) -> int | None:
    """The innermost line of the program in a traceback."""
    line = None
    while traceback is not None:
        if traceback.tb_frame.f_code.co_filename == filename:
            line = traceback.tb_lineno
        traceback = traceback.tb_next
    return line


def _described(error: BaseException) -> str:
    """Its type and, where they are plain, its words: a text of nested containers may take for ever to write."""
    plain = all(isinstance(argument, str | int | float) for argument in error.args)
    try:
        text = str(error)[:300] if plain else ""
    except Exception:
        text = ""
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _context(fields: Mapping[str, Any]) -> Context:
    """JSON has lists for the tuples of a context; those of a key pose become arrays elsewhere."""

    def tuples(value: Any) -> Any:
        return tuple(tuples(item) for item in value) if isinstance(value, list) else value

    columns: dict[str, Any] = {name: tuples(value) for name, value in fields.items() if name != "key_poses"}
    return Context(**columns, key_poses=tuple(fields["key_poses"]))


def _moments(payload: bytes, offset: int, n: int, context: Context) -> dict[str, Any]:
    moments = {}
    for name in MOMENT_FIELDS:
        shape, dtype = (n, *moment_shape(name, context)), moment_dtype(name)
        count = math.prod(shape)
        moments[name] = np.frombuffer(payload, dtype, count, offset).reshape(shape)
        offset += count * dtype.itemsize
    return moments


def _warm_up(context: Context) -> None:
    """Has everything loaded that numpy loads late: no file can be opened any more once the program runs."""
    warnings.simplefilter("ignore")
    np.seterr(all="ignore")
    moments = {name: np.ones((2, *moment_shape(name, context)), moment_dtype(name)) for name in MOMENT_FIELDS}
    list(each(context, moments))
    batched(context, moments)
    a = np.eye(3)
    np.linalg.norm(a @ a + np.linalg.inv(a), axis=-1)
    (
        np.median(a),
        np.quantile(a, 0.5),
        np.einsum("ij,ij->i", a, a),
        np.unique(a),
        np.isin(a, a),
        np.interp(0.5, a[0], a[0]),
    )
    for method in ("sum", "mean", "std", "var", "prod", "all", "any", "min", "max", "ptp"):
        getattr(np, method)(a)
    a.clip(0, 1), a.mean(), a.std(), a.var(), a.sum(), a.prod(), a.all(), a.any(), a.min(), a.max()
    repr(a), str(np.float64(1.0))
    faulthandler.enable(file=ERRORS, all_threads=False)
    faulthandler.register(signal.SIGUSR1, file=ERRORS, all_threads=False)


def _fail(request: int, fault: Fault) -> NoReturn:
    _write(Kind.FAULT, request, json.dumps(fault.fields).encode()[: frames.MAX_JSON])
    os._exit(0)


def _read(expected: Kind) -> tuple[int, bytes]:
    magic, kind, request, length = frames.HEADER.unpack(_exactly(frames.HEADER.size))
    if magic != frames.MAGIC or kind != expected:
        os._exit(1)
    return request, _exactly(length)


def _exactly(length: int) -> bytes:
    parts = []
    while length:
        part = os.read(REQUESTS, min(length, 1 << 20))
        if not part:
            os._exit(0)  # the parent is gone or has had enough
        parts.append(part)
        length -= len(part)
    return b"".join(parts)


def _write(kind: Kind, request: int, payload: bytes) -> None:
    data = memoryview(frames.frame(kind, request, payload))
    while data:
        data = data[os.write(ANSWERS, data) :]
