"""Several environments of one task at once, each in a process of its own, stepped together."""

import contextlib
import math
import multiprocessing
import os
import signal
import time
import weakref
from collections.abc import Iterator, Sequence
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.errors import SimulatorError
from stages.params import SimParams
from stages.sim.assets import Assets, resolve_assets
from stages.sim.runtime import WORKER_ENVIRONMENT, check_versions, choose_backend
from stages.sim.worker import Command, Failure, Outcome, Ready, run_worker
from stages.types import ACTION_DIM, PROPRIO_DIM, InitialState, Scene, Task, VectorObservation

_START_TIMEOUT = 120.0
_START_TIMEOUT_PER_ENV = 15.0  # workers share the cores while they import and build
_STEP_TIMEOUT = 60.0
_STEP_TIMEOUT_PER_ENV_STEP = 2.0
_EXIT_TIMEOUT = 2.0


class VectorEnv:
    """N environments of one task. Use it as a context manager, or call `close`.

    Images come through memory that is shared without a name, so nothing is left of it however the processes end; the
    rest (a few kilobytes) comes through pipes. Workers end when this process does, by whatever cause, and ignore
    Ctrl-C, which is this process's to handle.

    Args:
        task: the task of all environments.
        num_envs: N.
        sim: the simulator's params; each decision is held for `sim.action_repeat` environment steps.
        assets: the models; None resolves `sim.assets`.

    Attributes:
        task, num_envs, assets: as given.
        action_repeat: K, environment steps a decision is held for.
        object_names: the movable objects, the O axis of `Scene`.
        state_size: S, entries of a flattened MuJoCo state.

    Raises:
        SimulatorError: the simulator cannot start.
    """

    def __init__(self, task: Task, num_envs: int, sim: SimParams, assets: Assets | None = None) -> None:
        check_versions()
        assets = assets or resolve_assets(sim)
        self.task = task
        self.num_envs = num_envs
        self.assets = assets
        self.action_repeat = sim.action_repeat
        self._step_timeout = _STEP_TIMEOUT + _STEP_TIMEOUT_PER_ENV_STEP * max(sim.action_repeat, sim.settle_steps)
        self._connections: list[Connection] = []
        self._processes: list[BaseProcess] = []
        self._shut = weakref.finalize(self, _shut_down, self._connections, self._processes)
        self._was_reset = np.zeros(num_envs, np.bool_)
        self._images: list[NDArray[np.uint8]] = []
        try:
            with _worker_environment(choose_backend(sim.renderer)), _interrupts_blocked():
                for index in range(num_envs):
                    self._start_worker(index, sim, assets)
            deadline = time.monotonic() + _START_TIMEOUT + _START_TIMEOUT_PER_ENV * num_envs
            ready = [self._receive(index, deadline) for index in range(num_envs)]
        except BaseException:
            self.close()
            raise
        self.object_names: tuple[str, ...] = ready[0].object_names
        self.state_size: int = ready[0].state_size
        self._observation = _blank(num_envs, sim, len(self.object_names), self.state_size)

    def reset(self, starts: Sequence[InitialState], indices: Sequence[int] | None = None) -> VectorObservation:
        """Starts new episodes, one start for each index (None: all), and leaves the other environments as they are.

        Raises:
            TaskError: an initial state that does not exist.
            SimulatorError: a worker died, raised or fell silent; all are closed.
        """
        chosen = list(range(self.num_envs)) if indices is None else list(indices)
        if len(starts) != len(chosen) or len(set(chosen)) != len(chosen):
            raise ValueError(f"found {len(starts)} initial states for the environments {chosen}; expected one for each")
        observation = self._run(dict(zip(chosen, starts, strict=True)))
        self._was_reset[chosen] = True
        return observation

    def step(self, actions: NDArray[np.float64], active: NDArray[np.bool_] | None = None) -> VectorObservation:
        """Holds one action in each active environment (None: all) for K environment steps, fewer where it succeeds.

        Args:
            actions: (N, 7) in [-1, 1]; rows of inactive environments are not read.
            active: (N,) which environments to step; the others keep their state and their last observation.

        Raises:
            SimulatorError: a worker died, raised or fell silent; all are closed.
            ValueError: wrong shape, or an environment that was never reset.
        """
        if actions.shape != (self.num_envs, ACTION_DIM):
            raise ValueError(f"expected actions of shape ({self.num_envs}, {ACTION_DIM}), found {actions.shape}")
        chosen = range(self.num_envs) if active is None else np.flatnonzero(active).tolist()
        if not self._was_reset[list(chosen)].all():
            raise ValueError("an environment was stepped before its first reset")
        return self._run({index: np.asarray(actions[index], np.float64) for index in chosen})

    def close(self) -> None:
        """Ends all workers and waits for them. May be called twice."""
        self._shut()

    def __enter__(self) -> "VectorEnv":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _start_worker(self, index: int, sim: SimParams, assets: Assets) -> None:
        context = multiprocessing.get_context("spawn")  # forking a process that holds torch's threads would deadlock
        memory = context.RawArray("B", sim.image_size * sim.image_size * 3)
        mine, theirs = context.Pipe()
        process = context.Process(
            target=run_worker,
            args=(theirs, memory, self.task, sim, assets),
            name=f"tgrpo-env-{index}",
            daemon=True,
        )
        process.start()
        self._connections.append(mine)
        self._processes.append(process)
        theirs.close()  # else the pipe would not report that the worker is gone
        self._images.append(np.frombuffer(memory, np.uint8).reshape(sim.image_size, sim.image_size, 3))

    def _run(self, commands: dict[int, Command]) -> VectorObservation:
        """Sends a command to some environments, waits for all of them, and returns copies of what all N now show."""
        if not self._shut.alive:
            raise SimulatorError(f"the environments of {self.task.id} are closed; make new ones")
        try:
            for index, command in commands.items():
                with contextlib.suppress(OSError):  # a dead worker is reported below, with its exit status
                    self._connections[index].send(command)
            deadline = time.monotonic() + self._step_timeout
            outcomes = {index: self._receive(index, deadline) for index in commands}
        except BaseException:  # an interrupt too: answers still under way would be taken for those of the next command
            self.close()
            raise
        now = self._observation
        for index, outcome in outcomes.items():
            now.image[index] = self._images[index]
            now.proprio[index] = outcome.proprio
            for name, values in vars(now.scene).items():
                values[index] = getattr(outcome.scene, name)
            now.sim_state[index] = outcome.sim_state
            now.env_steps[index] = outcome.env_steps
        return VectorObservation(
            image=now.image.copy(),
            proprio=now.proprio.copy(),
            scene=Scene(**{name: values.copy() for name, values in vars(now.scene).items()}),
            sim_state=now.sim_state.copy(),
            env_steps=now.env_steps.copy(),
        )

    def _receive(self, index: int, deadline: float) -> Any:
        """The next answer of one worker, `Ready` or `Outcome`."""
        connection, process = self._connections[index], self._processes[index]
        who = f"environment {index} of {self.task.id}"
        ready = wait([connection, process.sentinel], max(0.0, deadline - time.monotonic()))
        if not ready:
            raise SimulatorError(f"{who} did not answer in time and was ended; try sim.renderer=osmesa, or fewer envs")
        try:
            answer: Ready | Outcome | Failure = connection.recv() if connection.poll() else _gone()
        except (EOFError, OSError):
            process.join(_EXIT_TIMEOUT)
            raise SimulatorError(
                f"{who} died ({_exit(process)}); is there memory for so many? try fewer envs"
            ) from None
        if isinstance(answer, Failure):
            raise type(answer.error)(f"{who}: {answer.error}")
        return answer


def _gone() -> Any:
    raise EOFError


def _exit(process: BaseProcess) -> str:
    code = process.exitcode
    if code is not None and code < 0:
        return f"killed by {signal.Signals(-code).name}"
    return f"exit status {code}"


def _shut_down(connections: list[Connection], processes: list[BaseProcess]) -> None:
    """Kills all workers: they have nothing to save, and a hung one would not listen."""
    for process in processes:
        process.kill()
    for process, connection in zip(processes, connections, strict=True):
        process.join()
        process.close()
        connection.close()
    connections.clear()
    processes.clear()


def _blank(num_envs: int, sim: SimParams, objects: int, state_size: int) -> VectorObservation:
    """The observation before any reset, NaN where it has numbers."""

    def blank(*shape: int) -> NDArray[np.float64]:
        return np.full((num_envs, *shape), math.nan)

    return VectorObservation(
        image=np.zeros((num_envs, sim.image_size, sim.image_size, 3), np.uint8),
        proprio=blank(PROPRIO_DIM).astype(np.float32),
        scene=Scene(
            ee_pos=blank(3),
            ee_quat=blank(4),
            gripper_qpos=blank(2),
            object_pos=blank(objects, 3),
            object_quat=blank(objects, 4),
            grasped=np.zeros((num_envs, objects), np.bool_),
            success=np.zeros(num_envs, np.bool_),
        ),
        sim_state=blank(sim.action_repeat, state_size),
        env_steps=np.zeros(num_envs, np.int64),
    )


@contextlib.contextmanager
def _worker_environment(backend: str) -> Iterator[None]:
    """Processes started inside see one thread per library and the renderer, from their first import on."""
    wanted = {**WORKER_ENVIRONMENT, "MUJOCO_GL": backend}
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """Processes started inside never see Ctrl-C: a blocked signal stays blocked in a child."""
    resource_tracker.ensure_running()  # else the first start does it, and unblocks the signal on the way
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
