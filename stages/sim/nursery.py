"""The process from which all workers of a `VectorEnv` are forked.

It builds the environment once, and a worker is born with it in milliseconds: simulator, compiled model and meshes are
shared until one of the two writes to them. The process that steps the environments cannot be that parent itself, as
it has threads (torch's), and a fork of theirs may deadlock. This one has a single thread.

A software renderer is nothing but memory, so it is made here too, once for all: without threads (Mesa's belong to the
rasterizer, see `WORKER_ENVIRONMENT`, and to its shader cache, see `DRAWING_ENVIRONMENT`). A GPU's cannot be forked; each
worker makes its own.
"""

import contextlib
import ctypes
import gc
import os
import pickle
import signal
import socket
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stages.errors import SimulatorError
from stages.params import SimParams
from stages.sim.assets import Assets
from stages.sim.records import Layout, Record
from stages.sim.worker import failure, serve
from stages.types import InitialState, SceneNames, Task

if TYPE_CHECKING:
    from stages.sim.env import LiberoEnv

DRAWING_ENVIRONMENT = {"MESA_SHADER_CACHE_DISABLE": "true", "MESA_GLSL_CACHE_DISABLE": "true"}  # new and old name
"""A nursery that draws compiles its shaders anew, in 0.2 to 0.5 s: the cache on disk would come with a thread."""

MESSAGE_BYTES = 1 << 16
_END_SECONDS = 2.0  # a killed process ends at once, unless a driver holds it in the kernel
_PR_SET_PDEATHSIG, _PR_SET_NAME = 1, 15


@dataclass(frozen=True)
class Order:
    """The first message to a nursery: what to build."""

    task: Task
    sim: SimParams
    assets: Assets
    draw: bool  # make the renderer too


@dataclass(frozen=True)
class Built:
    """Its answer: the environment stands."""

    names: SceneNames
    layout: Layout
    threads: int  # workers can only be forked from a process of one


@dataclass(frozen=True)
class Failed:
    """The answer to what cannot be done; after an `Order` the process ends."""

    failure: bytes


@dataclass(frozen=True)
class Fork:
    """Asks for a worker, with its socket and its memory as file descriptors; answered by its process id."""

    index: int


@dataclass(frozen=True)
class End:
    """Asks to kill a worker, if it is not dead yet; answered by its exit status as `subprocess` gives it, or None."""

    pid: int


def main(descriptor: int) -> None:
    """Serves until the other side of the socket is gone; no worker outlives this process.

    Args:
        descriptor: of a socket of messages, each one pickled object.
    """
    os.dup2(2, 1)  # the parent prints handles on this stdout: nothing here may write to it, not even C code
    sys.stdout = sys.stderr
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    _call_me("tgrpo-nursery")
    children: set[int] = set()
    with socket.socket(fileno=descriptor) as parent, contextlib.suppress(BrokenPipeError, ConnectionResetError):
        order: Order = pickle.loads(parent.recv(MESSAGE_BYTES))
        try:
            from stages.sim.env import NO_OP, LiberoEnv

            gc.disable()  # no holes of freed memory in the pages that workers will share
            env = LiberoEnv(order.task, order.sim, order.assets)
            env.reset(InitialState("sampled", 0))  # so that nothing is left that each worker would load or compile
            env.step(NO_OP)
            env.restore(env.snapshot())
            env.scene()
            env.proprio()
            if order.draw:
                env.render()
            gc.freeze()  # the collector would write to every object, and unshare its page
        except Exception as error:
            parent.send(pickle.dumps(Failed(failure(error))))
            return
        layout = Layout(
            image_size=order.sim.image_size,
            action_repeat=order.sim.action_repeat,
            objects=len(env.names.object_names),
            joints=len(env.names.joint_names),
            places=len(env.names.place_names),
            goals=len(env.names.goals),
            state_size=env.state_size,
            snapshot_size=env.snapshot_size,
        )
        parent.send(pickle.dumps(Built(env.names, layout, len(os.listdir("/proc/self/task")))))
        while True:
            message, descriptors, _, _ = socket.recv_fds(parent, MESSAGE_BYTES, 2)
            if not message:
                break
            request: Fork | End = pickle.loads(message)
            reply: int | Failed | None
            if isinstance(request, End):
                children.discard(request.pid)
                reply = _end(request.pid)
            else:
                reply = _fork(request.index, descriptors, parent, layout, env)
                if isinstance(reply, int):
                    children.add(reply)
            for descriptor in descriptors:
                os.close(descriptor)  # else the worker's death would go unnoticed while this process lives
            parent.send(pickle.dumps(reply))
    for pid in children:
        _end(pid)


def _fork(index: int, descriptors: list[int], parent: socket.socket, layout: Layout, env: "LiberoEnv") -> int | Failed:
    """The process id of a new worker. In the worker itself this serves, and does not return."""
    nursery = os.getpid()
    try:
        pid = os.fork()
    except OSError as error:
        reason = f"there is no process for environment {index} ({error.strerror}); use fewer envs"
        return Failed(failure(SimulatorError(reason)))
    if pid:
        return pid
    try:
        parent.close()  # else the nursery's death would go unnoticed while the worker lives
        gc.enable()
        _call_me(f"tgrpo-env-{index}")
        _die_with(nursery)
        connection, memory = descriptors
        serve(socket.socket(fileno=connection), Record(layout, memory), env)
    finally:
        os._exit(0)  # without cleaning up what belongs to the nursery


def _end(pid: int) -> int | None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + _END_SECONDS
    while time.monotonic() < deadline:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.001)
    return None


def _call_me(name: str) -> None:
    """The name under which ps and pgrep show this process."""
    ctypes.CDLL(None).prctl(_PR_SET_NAME, name[:15].encode())


def _die_with(parent: int) -> None:
    """Has the kernel kill this process when the one it was forked from ends, even if it is stopped or hangs."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before the kernel was told
        os._exit(0)
