"""The parent's side of the pipes: starts the child, asks it, watches its clocks, ends it.

The child is taken for hostile. All that it says has a bounded length and is read without blocking; whatever is not the one
frame that was asked for ends it.
"""

import contextlib
import math
import os
import re
import resource
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np

import stages.rewards
from stages.rewards.sandbox import frames
from stages.rewards.sandbox.check import FILENAME
from stages.rewards.sandbox.frames import Kind

_MAX_STDERR = 1 << 20  # bytes between two requests; a traceback has some thousands
_TAIL = 1 << 16
_CHUNK = 1 << 20
_DYING = 3.0  # seconds that a child has to say where it is, or to be gone
_LINE = re.compile(rf'File "{re.escape(FILENAME)}", line (\d{{1,7}})'.encode())

# The packages are entered without their __init__ files, which import what the child does not need.
_BOOT = """
import sys, types
sys.path.append(sys.argv[1])
for name, folder in zip(sys.argv[2::2], sys.argv[3::2]):
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = [folder]
from stages.rewards.sandbox.child import main
main()
"""


class Ended(Exception):
    """The child is no more. `line` is the program's at the end where it could be learnt."""

    def __init__(self, line: int | None) -> None:
        super().__init__()
        self.line = line


class OutOfTime(Ended):
    """`what` was used up: "CPU time" or "time"; `seconds` is how much."""

    def __init__(self, line: int | None, what: str, seconds: float) -> None:
        super().__init__(line)
        self.what, self.seconds = what, seconds


class Died(Ended):
    """By a signal, or by leaving. `how` is a part of a sentence; `said` the end of its error output."""

    def __init__(self, line: int | None, how: str, said: str) -> None:
        super().__init__(line)
        self.how, self.said = how, said


class Babbled(Ended):
    """Said something that was not asked for."""


class Connection:
    """One child, from its start to its end."""

    def __init__(self) -> None:
        self._folder = tempfile.mkdtemp(prefix="tgrpo-reward-")
        package = Path(stages.rewards.__file__).parent
        packages = {"stages": package.parent, "stages.rewards": package, "stages.rewards.sandbox": package / "sandbox"}
        numpy = Path(np.__file__).parents[1]
        words = [str(word) for name_and_folder in packages.items() for word in name_and_folder]
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-B", "-c", _BOOT, str(numpy), *words],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                bufsize=0,
                cwd=self._folder,
                env={},
                start_new_session=True,  # the terminal's Ctrl-C is for the parent
            )
        except BaseException:
            self.remove_folder()
            raise
        assert self._process.stdin and self._process.stdout and self._process.stderr
        self._pipes = (self._process.stdin, self._process.stdout, self._process.stderr)
        self._requests, self._answers, self._errors = (pipe.fileno() for pipe in self._pipes)
        for descriptor in (self._requests, self._answers, self._errors):
            os.set_blocking(descriptor, False)
        self._received, self._stderr, self._stderr_bytes = bytearray(), bytearray(), 0
        self._request = 0
        self._open = True

    def send(self, kind: Kind, payload: bytes) -> None:
        """Prepares a request; `receive` sends it while it listens."""
        self._drain_stderr()
        with contextlib.suppress(BlockingIOError):
            self._received += os.read(self._answers, 1)
        if self._received:
            raise self._ended(Babbled(self._line()))
        self._stderr.clear()
        self._stderr_bytes = 0
        self._request += 1
        self._outgoing = memoryview(frames.frame(kind, self._request, payload))

    def receive(self, lengths: Mapping[Kind, range], cpu: float, wall: float) -> tuple[Kind, bytes]:
        """Waits for the next frame.

        Args:
            lengths: the kinds that may come now, with the lengths that their payloads may have.
            cpu, wall: seconds from now.

        Raises:
            Ended: no such frame came. The child is dead then, in every case.
        """
        cpu_end, wall_end = self._cpu() + cpu, time.monotonic() + wall
        self._limit_cpu(cpu_end)
        with selectors.DefaultSelector() as selector:
            selector.register(self._answers, selectors.EVENT_READ)
            selector.register(self._errors, selectors.EVENT_READ)
            if self._outgoing:
                selector.register(self._requests, selectors.EVENT_WRITE)
            while True:
                answer = self._frame(lengths)
                if answer:
                    return answer
                cpu_left, wall_left = cpu_end - self._cpu(), wall_end - time.monotonic()
                if cpu_left <= 0 or wall_left <= 0:
                    what, seconds = ("CPU time", cpu) if cpu_left <= 0 else ("time", wall)
                    raise self._ended(OutOfTime(self._ask_for_line(), what, seconds))
                # The child has one thread, so its CPU time cannot run out before that much wall clock has passed.
                for key, _ in selector.select(max(0.001, min(cpu_left, wall_left))):
                    if key.fd == self._requests:
                        self._write(selector)
                    elif key.fd == self._errors:
                        if not self._drain_stderr():
                            selector.unregister(self._errors)
                    else:
                        self._read()

    @property
    def pid(self) -> int:
        return self._process.pid

    def close(self) -> None:
        """Ends the child, whatever it is doing, and leaves no zombie."""
        if not self._open:
            return
        self._open = False
        self._process.kill()
        for pipe in self._pipes:
            pipe.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(10)
        self.remove_folder()

    def remove_folder(self) -> None:
        """Once the child is in it. An empty folder that is deleted can hold nothing, and no killed parent leaves it behind."""
        with contextlib.suppress(OSError):
            os.rmdir(self._folder)

    def _ended(self, error: Ended) -> Ended:
        self.close()
        return error

    def _write(self, selector: selectors.BaseSelector) -> None:
        try:
            self._outgoing = self._outgoing[os.write(self._requests, self._outgoing[:_CHUNK]) :]
        except BlockingIOError:
            return
        except BrokenPipeError:
            self._outgoing = memoryview(b"")  # why, the answers' pipe will tell
        if not self._outgoing:
            selector.unregister(self._requests)

    def _read(self) -> None:
        try:
            part = os.read(self._answers, _CHUNK)
        except BlockingIOError:
            return
        if not part:
            raise self._gone()
        self._received += part

    def _frame(self, lengths: Mapping[Kind, range]) -> tuple[Kind, bytes] | None:
        """The next frame if it is whole; it is judged as soon as its header is there."""
        if len(self._received) < frames.HEADER.size:
            return None
        magic, kind, request, length = frames.HEADER.unpack_from(self._received)
        expected = {int(kind): allowed for kind, allowed in lengths.items()}
        if magic != frames.MAGIC or request != self._request or length not in expected.get(kind, ()):
            raise self._ended(Babbled(self._line()))
        end = frames.HEADER.size + length
        if len(self._received) < end:
            return None
        payload = bytes(self._received[frames.HEADER.size : end])
        del self._received[:end]
        return Kind(kind), payload

    def _drain_stderr(self) -> bool:
        """Reads what there is. False at the end of the file."""
        while True:
            try:
                part = os.read(self._errors, _CHUNK)
            except BlockingIOError:
                return True
            if not part:
                return False
            self._stderr_bytes += len(part)
            self._stderr = (self._stderr + part)[-_TAIL:]
            if self._stderr_bytes > _MAX_STDERR:
                raise self._ended(Babbled(self._line()))

    def _gone(self) -> Ended:
        """The answers' pipe was closed."""
        try:
            code: int | None = self._process.wait(_DYING)
        except subprocess.TimeoutExpired:
            code = None
        self._drain_stderr()
        line, said = self._line(), self._stderr.decode("ascii", "replace").strip()
        if code is None:
            how = "closed its pipe"
        elif code in (-signal.SIGXCPU, -signal.SIGALRM):
            return self._ended(OutOfTime(line, "time", 0.0))
        elif code < 0:
            how = f"died of {_signal_name(-code)}"
        else:
            how = "left without an answer"
        return self._ended(Died(line, how, said))

    def _ask_for_line(self) -> int | None:
        """The child's fault handler writes a traceback when it is told to, whatever it is computing."""
        self._stderr.clear()
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGUSR1)
        end = time.monotonic() + _DYING
        with selectors.DefaultSelector() as selector:
            selector.register(self._errors, selectors.EVENT_READ)
            while self._line() is None and time.monotonic() < end:
                if selector.select(0.1) and not self._drain_stderr():
                    break
        return self._line()

    def _line(self) -> int | None:
        """The innermost line of the program in what the fault handler wrote."""
        found = _LINE.search(self._stderr)
        return int(found[1]) if found else None

    def _cpu(self) -> float:
        """Seconds of CPU time that the child has used."""
        try:
            return time.clock_gettime(
                (~self._process.pid << 3) | 2
            )  # CPUCLOCK_SCHED of the process, see clock_getcpuclockid
        except OSError:
            return 0.0  # not Linux, or dead; the wall clock remains

    def _limit_cpu(self, end: float) -> None:
        """The kernel ends the child a little later than the parent would, should the parent not get to it."""
        with contextlib.suppress(OSError, ValueError, AttributeError):
            resource.prlimit(self._process.pid, resource.RLIMIT_CPU, (math.ceil(end) + 1, resource.RLIM_INFINITY))


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
