"""The processes of a `VectorEnv`, seen from the one that steps it: the nursery and the workers forked from it."""

import contextlib
import dataclasses
import os
import pickle
import signal
import socket
import subprocess
import sys
import time
from typing import Any

from stages import errors
from stages.errors import SimulatorError
from stages.params import SimParams
from stages.sim.assets import Assets
from stages.sim.nursery import DRAWING_ENVIRONMENT, MESSAGE_BYTES, Built, End, Failed, Fork, Order
from stages.sim.records import Command, Payload, Record, new_memory
from stages.sim.runtime import WORKER_ENVIRONMENT
from stages.sim.worker import DONE
from stages.types import Task

_BUILD_SECONDS = 300.0  # 1 to 7, and 30 more for the first compilation on a machine; several times that when it is busy
_ANSWER_SECONDS = 10.0  # a nursery that stands forks in milliseconds
_EXIT_SECONDS = 2.0
_PROGRAM = "import sys; sys.path[:] = {path!r}; from stages.sim.nursery import main; main({descriptor})"


class Lost(Exception):
    """A process is of no use any more; the message says what happened to it. Never leaves the room."""


class Silent(Lost):
    """It lives, but does not answer."""


class Worker:
    """One environment's process, its socket and its record.

    Attributes:
        pid: its process id.
        nursery: the process id of what it was forked from, which alone may end it.
        record: what it shares; read it after `receive`, until the next `send`.
    """

    def __init__(self, pid: int, nursery: int | None, connection: socket.socket, record: Record) -> None:
        self.pid = pid
        self.nursery = nursery
        self.record = record
        self._connection = connection
        self._asked_at = time.monotonic()

    def fileno(self) -> int:
        """Readable when an answer is there, or when the worker is gone."""
        return self._connection.fileno()

    def send(self, command: Command, payload: Payload) -> None:
        """Wakes the worker. It must have answered everything before.

        Raises:
            Lost: it is dead.
        """
        self.record.put(command, payload)
        self._asked_at = time.monotonic()
        try:
            self._connection.send(command.value)
        except OSError:
            raise Lost("died") from None

    def receive(self) -> None:
        """Takes its answer, which `fileno` has announced.

        Raises:
            Lost: it is dead.
            TgrpoError: what it raised.
        """
        try:
            answer = self._connection.recv(MESSAGE_BYTES)
        except OSError:
            answer = b""
        if not answer:
            raise Lost("died")
        if answer != DONE:
            raise _error(answer)

    @property
    def moved_at(self) -> float:
        """When it was last seen to move: it was asked, or ended an environment step. Seconds of `time.monotonic`."""
        return max(self._asked_at, float(self.record["alive_at"]))

    def close(self, wait: float = 0.0) -> None:
        """Lets go of it, once it has ended or `wait` seconds have passed."""
        self._connection.settimeout(wait)
        with contextlib.suppress(OSError):
            while self._connection.recv(MESSAGE_BYTES):
                pass
        self._connection.close()


class Nursery:
    """Builds the environment in a process of its own and has workers forked there. Makes a new one when it is lost.

    Args:
        task, sim, assets: as for `LiberoEnv`; `sim.renderer` must not be `auto`.
        draw: make the renderer before workers are forked, too, where that is possible. That divides the memory of each
            by 3 to 10, and is worth its time from two workers on.
    """

    def __init__(self, task: Task, sim: SimParams, assets: Assets, *, draw: bool) -> None:
        self._order = Order(task, sim, assets, draw and sim.renderer == "osmesa")
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: socket.socket | None = None
        self._built: Built | None = None

    @property
    def pid(self) -> int | None:
        """Its process id, None before it is started."""
        return self._process.pid if self._process else None

    def start(self) -> Built:
        """Builds the environment, which takes seconds.

        Raises:
            SimulatorError: it cannot be built.
        """
        self._connection, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            program = _PROGRAM.format(path=sys.path, descriptor=theirs.fileno())
            self._process = subprocess.Popen(
                [sys.executable, "-c", program],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                env={**os.environ, **WORKER_ENVIRONMENT, **(DRAWING_ENVIRONMENT if self._order.draw else {})},
                start_new_session=True,  # a terminal's Ctrl-C and Ctrl-Z are for this process alone
            )
        try:
            built: Built = self._ask(self._order, timeout=_BUILD_SECONDS)
        except Lost as lost:
            code = self._process.poll() if self._process else None
            self.stop()
            raise SimulatorError(
                f"the simulator of {self._order.task.id} {lost} while it was built ({_exit(code)});"
                " is there memory for it? run: tgrpo doctor"
            ) from None
        except BaseException:
            self.stop()
            raise
        if built.threads > 1 and self._order.draw:  # another Mesa, with threads of its own
            self.stop()
            self._order = dataclasses.replace(self._order, draw=False)
            return self.start()
        self._built = built
        return built

    def fork(self, index: int) -> Worker:
        """A new worker, which answers once when it has rendered its first frame.

        Args:
            index: the environment, for the process's name `tgrpo-env-INDEX`.

        Raises:
            Lost: the nursery is dead or silent; the next call starts another.
            SimulatorError: it cannot be built again, or there are no more file descriptors.
        """
        built = self._built or self.start()
        try:
            with new_memory() as memory:
                record = Record(built.layout, memory)
                mine, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
                with theirs:
                    pid = self._ask(Fork(index), theirs.fileno(), memory)
        except Lost:
            mine.close()
            self.stop()
            raise
        except OSError as error:
            raise SimulatorError(
                f"environment {index} of {self._order.task.id} cannot be started ({error.strerror}); use fewer envs"
            ) from None
        return Worker(pid, self.pid, mine, record)

    def end(self, worker: Worker) -> str:
        """Kills a worker, if it is not dead yet, and says how it ended."""
        worker.close()
        if self._built is not None and worker.nursery == self.pid:
            try:
                return _exit(self._ask(End(worker.pid)))
            except Lost:
                self.stop()
        return "the process it was forked from is gone"

    def stop(self) -> None:
        """Ends it, and so every worker. May be called again."""
        if self._connection is not None:
            self._connection.close()  # it kills its workers, collects them and ends
        if self._process is not None:
            try:
                self._process.wait(_EXIT_SECONDS if self._built else 0)
            except subprocess.TimeoutExpired:
                self._process.kill()  # the kernel kills its workers
                self._process.wait()
        self._connection = self._process = self._built = None

    def _ask(self, request: object, *descriptors: int, timeout: float = _ANSWER_SECONDS) -> Any:
        assert self._connection is not None
        self._connection.settimeout(timeout)
        try:
            socket.send_fds(self._connection, [pickle.dumps(request)], descriptors)
            answer = self._connection.recv(MESSAGE_BYTES)
        except TimeoutError:
            raise Silent(f"was silent for {timeout:.0f} s") from None
        except (BrokenPipeError, ConnectionResetError):
            answer = b""
        if not answer:
            raise Lost("died")
        reply = pickle.loads(answer)
        if isinstance(reply, Failed):
            raise _error(reply.failure)
        return reply


def _error(failure: bytes) -> errors.TgrpoError:
    """What `stages.sim.worker.failure` has packed."""
    name, _, message = failure.decode().partition("\n")
    error: errors.TgrpoError = getattr(errors, name)(message)
    return error


def _exit(code: int | None) -> str:
    if code is None:
        return "still running"
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
