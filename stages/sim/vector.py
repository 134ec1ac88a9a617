"""Several environments of one task at once, each in a process of its own, stepped together and hard to kill."""

import logging
import os
import selectors
import time
import weakref
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from stages.errors import SimulatorError, TgrpoError
from stages.params import SimParams
from stages.sim.assets import Assets, resolve_assets
from stages.sim.backends import choose_backend
from stages.sim.memory import available_bytes, private_bytes
from stages.sim.processes import Lost, Nursery, Silent, Worker
from stages.sim.records import Command, Payload, observation
from stages.sim.runtime import check_versions
from stages.sim.scene_parts import HasSceneNames
from stages.types import ACTION_DIM, InitialState, Task, VectorObservation

_log = logging.getLogger(__name__)
_GROWTH = 16 << 20  # bytes that a worker needs on top of those at its first frame; measured were 8 to 10 MiB
_EXIT_SECONDS = 2.0

_Request = tuple[Command, Payload]
_Job = Generator[_Request | None, None, None]
"""What one environment has to do: yields what its worker shall be sent (None: nothing) before it answers again."""


@dataclass
class _Slot:
    """One environment: the worker that runs it now, and what another would need to take its place."""

    index: int
    worker: Worker | None = None
    settled: bool = False  # an episode has begun; its settled snapshot lies in the environment's row
    actions: list[NDArray[np.float64]] = field(default_factory=list)  # (7,) of each decision since
    losses: int = 0  # of workers, since the last reset


class VectorEnv(HasSceneNames):
    """N environments of one task. Use it as a context manager, or call `close`.

    All workers are forked from one process that has built the environment, so they share the model's memory and start
    in milliseconds. What they show comes through shared memory without a name, and nothing is left of it however the
    processes end. Workers end when this process does, by whatever cause, and never see Ctrl-C, which is this process's.

    A worker that dies or stays silent for `sim.timeout_s` is replaced. The new one starts from the episode's settled
    state, repeats its actions, and must come to the same state to the last bit before it goes on, so a loss costs time
    and changes nothing.

    Args:
        task: the task of all environments.
        num_envs: N.
        sim: the simulator's params; each decision is held for `sim.action_repeat` environment steps.
        assets: the models; None resolves `sim.assets`.

    Attributes:
        task, num_envs, assets: as given.
        action_repeat: K, environment steps a decision is held for.
        names: what the axes of `Scene` stand for; `object_names` and the other names are attributes as well.
        state_size: S, entries of a flattened MuJoCo state.
        restarts: workers that were replaced so far.

    Raises:
        SimulatorError: the simulator cannot start, or there is no memory for so many.
    """

    def __init__(self, task: Task, num_envs: int, sim: SimParams, assets: Assets | None = None) -> None:
        check_versions()
        self.task = task
        self.num_envs = num_envs
        self.assets = assets or resolve_assets(sim)
        self.action_repeat = sim.action_repeat
        self.restarts = 0
        self._timeout = sim.timeout_s
        self._max_restarts = sim.max_restarts
        self._sim = sim.model_copy(update={"renderer": choose_backend(sim.renderer)})
        self._start()

    def _start(self) -> None:
        """Builds the environment once and forks all workers, none of which has begun an episode."""
        num_envs = self.num_envs
        self._slots = [_Slot(index) for index in range(num_envs)]
        self._under_way: set[int] = set()  # the environments that answer to a request
        self._nursery = Nursery(self.task, self._sim, self.assets, draw=num_envs > 1)
        self._shut = weakref.finalize(self, _shut_down, os.getpid(), self._nursery, self._slots)
        try:
            built = self._nursery.start()
            self.names = built.names
            self.state_size = built.layout.state_size
            self._run({0: None})
            self._refuse_too_many()
            self._run(dict.fromkeys(range(1, num_envs)))
        except BaseException:
            self.close()
            raise
        self._rows = built.layout.blank(num_envs)  # what each environment last showed

    def reset(self, starts: Sequence[InitialState], indices: Sequence[int] | None = None) -> VectorObservation:
        """Starts new episodes, one start for each index (None: all), and leaves the other environments as they are.

        Among environments with the same start, one simulates it, and the others go on from its snapshot.

        Raises:
            TaskError: an initial state that does not exist; all environments are closed.
            SimulatorError: a worker raised, or was lost too often; all environments are closed.
        """
        chosen = list(range(self.num_envs)) if indices is None else list(indices)
        known = set(chosen) <= set(range(self.num_envs))
        if not known or len(starts) != len(chosen) or len(set(chosen)) != len(chosen):
            raise ValueError(
                f"found {len(starts)} initial states for the environments {chosen} of {self.num_envs};"
                " expected one for each"
            )
        leaders: dict[InitialState, int] = {}
        for index, start in zip(chosen, starts, strict=True):
            leaders.setdefault(start, index)
            slot = self._slots[index]
            slot.settled, slot.actions, slot.losses = False, [], 0
        self._run({index: (Command.RESET, start) for start, index in leaders.items()})
        forks = {index: leaders[start] for index, start in zip(chosen, starts, strict=True) if leaders[start] != index}
        for index, leader in forks.items():
            self._rows[index] = self._rows[leader]
        self._run({index: (Command.RESTORE, self._rows[index]["snapshot"]) for index in forks})
        return observation(self._rows)

    def step(self, actions: NDArray[np.float64], active: NDArray[np.bool_] | None = None) -> VectorObservation:
        """Holds one action in each active environment (None: all) for K environment steps, fewer where it succeeds.

        Args:
            actions: (N, 7) in [-1, 1]; rows of inactive environments are not read.
            active: (N,) which environments to step; the others keep their state and their last observation.

        Raises:
            SimulatorError: actions of another shape or not finite, and nothing was stepped; or a worker raised, or was
                lost too often, and all environments are closed.
            ValueError: `active` has another shape, or an environment was never reset or is being stepped.
        """
        return self.start_step(actions, active)()

    def start_step(
        self, actions: NDArray[np.float64], active: NDArray[np.bool_] | None = None
    ) -> Callable[[], VectorObservation]:
        """Starts what `step` does and returns at once, so that the caller can decide for other environments meanwhile.

        Returns:
            What waits for the step and then returns the observation, of which only the stepped rows are new for sure. To be
            called once, before these environments are asked for anything else.

        Raises:
            SimulatorError, ValueError: as `step`; what a worker does wrong is raised by the wait.
        """
        if np.shape(actions) != (self.num_envs, ACTION_DIM):
            raise SimulatorError(
                f"{self.num_envs} environments of {self.task.id} were given actions of shape {np.shape(actions)};"
                f" expected ({self.num_envs}, {ACTION_DIM}), one row each"
            )
        if active is not None and np.shape(active) != (self.num_envs,):
            raise ValueError(f"expected active of shape ({self.num_envs},), found {np.shape(active)}")
        requests: dict[int, _Request] = {}
        for index in range(self.num_envs) if active is None else np.flatnonzero(active).tolist():
            if not self._slots[index].settled:
                raise ValueError(f"{self._name(index)} was stepped before its first reset")
            action = np.array(actions[index], np.float64)
            if not np.isfinite(action).all():
                raise SimulatorError(
                    f"{self._name(index)} was given the action {action}; expected {ACTION_DIM} finite numbers;"
                    " a policy that diverged? train it with a smaller update.lr"
                )
            requests[index] = Command.STEP, action
        waiting = self._start_requests(requests)

        def finish() -> VectorObservation:
            self._finish_requests(waiting, requests)
            return observation(self._rows)

        return finish

    def restart(self) -> None:
        """Starts all environments anew, after a failure has closed them too; each needs a reset before its next step.

        Raises:
            SimulatorError: the simulator cannot start, or there is no memory for so many.
        """
        self.close()
        self._start()

    def close(self) -> None:
        """Ends all processes and waits for them, also those of steps under way. May be called twice."""
        self._shut()

    def __enter__(self) -> "VectorEnv":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _run(self, requests: Mapping[int, _Request | None]) -> None:
        """Does what is asked of some environments, all at once, whatever becomes of their workers on the way."""
        self._finish_requests(self._start_requests(requests), requests)

    def _start_requests(self, requests: Mapping[int, _Request | None]) -> selectors.BaseSelector:
        """Sends what is asked of some environments; returns what `_finish_requests` waits with."""
        if not self._shut.alive:
            raise SimulatorError(f"the environments of {self.task.id} are closed; make new ones")
        busy = self._under_way & requests.keys()
        if busy:
            raise ValueError(f"{self._name(min(busy))} is being stepped; wait for that first")
        waiting = selectors.DefaultSelector()
        with self._closing_all():
            self._under_way |= requests.keys()
            for index, request in requests.items():
                slot = self._slots[index]
                self._go_on(waiting, slot, self._job(slot, request))
        return waiting

    def _finish_requests(self, waiting: selectors.BaseSelector, requests: Mapping[int, _Request | None]) -> None:
        """Waits until all of it is done."""
        if not self._shut.alive:
            raise SimulatorError(f"the environments of {self.task.id} were closed while they were stepped")
        with self._closing_all(), waiting:
            while waiting.get_map():
                self._await(waiting)
            self._under_way -= requests.keys()

    @contextmanager
    def _closing_all(self) -> Iterator[None]:
        """Closes everything on any failure, an interrupt too: answers under way would be taken for those of what is next."""
        try:
            yield
        except BaseException:
            self.close()
            raise

    def _job(self, slot: _Slot, request: _Request | None) -> _Job:
        """All that one environment has to do for a request, with another worker whenever one is lost."""
        while True:
            try:
                if slot.worker is None:
                    slot.worker = self._nursery.fork(slot.index)
                    yield None
                    if slot.settled:
                        yield Command.RESTORE, self._rows[slot.index]["snapshot"]
                        for action in slot.actions:
                            yield Command.REPEAT, action
                        self._compare(slot)
                if request is not None:
                    yield request
                    self._keep(slot, *request)
                return
            except Lost as lost:
                self._replace(slot, lost)

    def _go_on(self, waiting: selectors.BaseSelector, slot: _Slot, job: _Job, lost: Lost | None = None) -> None:
        """Runs a job up to its next answer, which is then waited for."""
        while True:
            try:
                request = job.throw(lost) if lost else next(job)
                assert slot.worker is not None
                if request is not None:
                    slot.worker.send(*request)
                waiting.register(slot.worker, selectors.EVENT_READ, (slot, job))
                return
            except StopIteration:
                return
            except Lost as error:
                lost = error
            except SimulatorError as error:
                error.environment = slot.index
                raise

    def _await(self, waiting: selectors.BaseSelector) -> None:
        """Waits for the next answers and goes on with their jobs; without any, one that is silent for too long is lost."""
        pending: list[tuple[_Slot, _Job]] = [key.data for key in waiting.get_map().values()]
        moved_at = {slot.index: slot.worker.moved_at for slot, _ in pending if slot.worker}
        answers = waiting.select(max(0.0, min(moved_at.values()) + self._timeout - time.monotonic()))
        for key, _ in answers:
            waiting.unregister(key.fileobj)
            slot, job = key.data
            lost = None
            try:
                slot.worker.receive()
            except Lost as error:
                lost = error
            except TgrpoError as error:
                failure = type(error)(f"{self._name(slot.index)}: {error}")
                if isinstance(failure, SimulatorError):
                    failure.environment = slot.index
                raise failure from None
            self._go_on(waiting, slot, job, lost)
        if answers:  # what came while this process was busy, or stopped, goes before any time-out
            return
        for slot, job in pending:
            if slot.worker and slot.worker.moved_at + self._timeout <= time.monotonic():
                waiting.unregister(slot.worker)
                self._go_on(waiting, slot, job, Silent(f"was silent for {self._timeout:g} s"))
                return

    def _keep(self, slot: _Slot, command: Command, payload: Payload) -> None:
        """Takes over what a worker has done: in its environment's row, and in what another would have to repeat."""
        assert slot.worker is not None
        if command == Command.RESTORE:
            self._compare(slot)
        else:
            self._rows[slot.index] = slot.worker.record.values
        if isinstance(payload, InitialState) or command == Command.RESTORE:
            slot.settled = True
        else:
            slot.actions.append(payload)

    def _compare(self, slot: _Slot) -> None:
        """Holds a worker to the states that the environment was in before.

        Raises:
            SimulatorError: they differ in a bit.
        """
        assert slot.worker is not None
        row, record = self._rows[slot.index], slot.worker.record
        if row["env_steps"] != record["env_steps"] or not np.array_equal(row["sim_state"], record["sim_state"]):
            difference = np.abs(row["sim_state"] - record["sim_state"]).max()
            raise SimulatorError(
                f"{self._name(slot.index)} came to another state when its {len(slot.actions)} decisions were simulated"
                f" again (by up to {difference:.1e}), though equal actions give equal bits; were packages or assets"
                " changed since it was started? start it again"
            )

    def _replace(self, slot: _Slot, lost: Lost) -> None:
        """Clears the place of a lost worker for the next one, unless it is one too many.

        Raises:
            SimulatorError: more than `sim.max_restarts` in one episode.
        """
        what = str(lost)
        if slot.worker is not None:
            end = self._nursery.end(slot.worker)
            what += f" ({end})" if not isinstance(lost, Silent) else ""
            slot.worker = None
        slot.losses += 1
        done = len(slot.actions)
        what = f"{self._name(slot.index)} {what} after {done} decision{'s' * (done != 1)}"
        if slot.losses > self._max_restarts:
            slow, dead = (
                "raise sim.timeout_s, or try sim.renderer=osmesa",
                "is there memory for so many? try fewer envs",
            )
            raise SimulatorError(
                f"{what}, and was lost {slot.losses} times in this episode, with sim.max_restarts={self._max_restarts};"
                f" {slow if isinstance(lost, Silent) else dead}"
            )
        self.restarts += 1
        _log.warning("%s; its episode is simulated again (loss %d, at most %d)", what, slot.losses, self._max_restarts)

    def _refuse_too_many(self) -> None:
        """Measures the first worker, which has rendered a frame by now."""
        (first, *others) = self._slots
        assert first.worker is not None
        need = private_bytes(first.worker.pid) + _GROWTH
        free = available_bytes()
        if need * len(others) > free:
            raise SimulatorError(
                f"{self.num_envs} environments of {self.task.id} need {need / 2**20:.0f} MiB each, and"
                f" {free / 2**20:.0f} MiB are free: {1 + int(free / need)} fit; use fewer envs or a smaller sim.image_size"
            )

    def _name(self, index: int) -> str:
        return f"environment {index} of {self.task.id}"


def _shut_down(owner: int, nursery: Nursery, slots: list[_Slot]) -> None:
    if os.getpid() != owner:  # a fork of the owner inherits the finalizer, but not the processes
        return
    nursery.stop()
    for slot in slots:
        if slot.worker is not None:
            slot.worker.close(_EXIT_SECONDS)
            slot.worker = None
