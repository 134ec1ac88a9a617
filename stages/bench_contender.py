"""One contender of `tgrpo bench sim`, in a process of its own: LIBERO's wrapper, this project's environment, or MuJoCo.

A process for each, because LIBERO's renderer and ours would fight for the current OpenGL context, and so that start-up
and memory are each one's own. The first argument is an `Entry` as JSON. Requests are lines on stdin (`start`, `run N`),
answers are lines of JSON on stdout, the first one when the first observation is there.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from stages.errors import TgrpoError
from stages.params import SimParams
from stages.timing import Seconds

STATE = 0  # the official initial state from which all start
MAX_STEPS = 900  # LIBERO's wrapper refuses to go on after 1000
_SETTLE_STEPS = 10  # LIBERO's protocol


@dataclass(frozen=True)
class Entry:
    """Who takes part, and in what."""

    who: Literal["libero", "ours", "mj_step"]
    task: str
    sim: SimParams
    images: bool

    def to_json(self) -> str:
        return json.dumps({**vars(self), "sim": self.sim.model_dump()})

    @classmethod
    def from_json(cls, text: str) -> "Entry":
        fields = json.loads(text)
        return cls(**{**fields, "sim": SimParams(**fields["sim"])})


class Runner(Protocol):
    """What a contender can do. `step` returns what one control step took, its observation included."""

    def reset(self) -> None: ...

    def step(self, action: NDArray[np.float64]) -> Seconds: ...

    def state(self) -> NDArray[np.float64]: ...

    def drawn_by(self) -> str: ...


class Libero:
    """LIBERO's own `OffScreenRenderEnv` as it comes, two cameras, at the 256 px of its evaluation; or with neither.

    It keeps its renderer when it has no cameras: without one its states differ from the 15th digit on.
    """

    def __init__(self, entry: Entry) -> None:
        from stages.sim.assets import resolve_assets
        from stages.sim.runtime import prepare
        from stages.sim.tasks import load_task, official_states

        task = load_task(entry.task)
        prepare(entry.sim, resolve_assets(entry.sim).path, liberos_renderer=True)
        from libero.libero.envs.env_wrapper import OffScreenRenderEnv

        self._env: Any = OffScreenRenderEnv(
            bddl_file_name=str(task.bddl_file), camera_heights=256, camera_widths=256, use_camera_obs=entry.images
        )
        self._start = official_states(task)[STATE]

    def reset(self) -> None:
        self._env.seed(0)
        self._env.reset()
        self._env.set_init_state(self._start)

    def step(self, action: NDArray[np.float64]) -> Seconds:
        began = _now()
        self._env.step(action)
        return _since(began)

    def state(self) -> NDArray[np.float64]:
        return self._env.get_sim_state()

    def drawn_by(self) -> str:
        return ""


class Ours:
    """`LiberoEnv`, with the image if there is one, proprioception and the poses of all objects, as LIBERO returns them."""

    def __init__(self, entry: Entry) -> None:
        from stages.sim.assets import resolve_assets
        from stages.sim.env import LiberoEnv
        from stages.sim.tasks import load_task, official_states

        task = load_task(entry.task)
        self._entry = entry
        self._env = LiberoEnv(task, entry.sim, resolve_assets(entry.sim))
        self._start = official_states(task)[STATE]

    def reset(self) -> None:
        self._env.reset(self._start)
        self._observe()

    def step(self, action: NDArray[np.float64]) -> Seconds:
        began = _now()
        self._env.step(action)
        self._observe()
        return _since(began)

    def state(self) -> NDArray[np.float64]:
        return self._env.state()

    def drawn_by(self) -> str:
        from stages.sim.backends import choose_backend, drawing

        if not self._entry.images:
            return ""
        backend = choose_backend(self._entry.sim.renderer)
        found = drawing(backend)
        return f"{backend}: {found.renderer}, {found.version}"

    def _observe(self) -> None:
        if self._entry.images:
            self._env.render()
        self._env.proprio()
        self._env.scene()


class MjStep(Ours):
    """25 plain `mj_step` on the states that the controlled environment goes through, with the controls it begins with.

    With sensors off, as in ours: LIBERO's model has two, which a plain `mj_step` would compute too.
    """

    def __init__(self, entry: Entry) -> None:
        from stages.sim.glfree import mujoco

        super().__init__(entry)
        self._mujoco = mujoco
        self._kind = int(mujoco.mjtState.mjSTATE_INTEGRATION)
        self._before = np.empty(mujoco.mj_stateSize(self._env.model, self._kind))
        self._data = mujoco.MjData(self._env.model)

    def step(self, action: NDArray[np.float64]) -> Seconds:
        model = self._env.model
        self._mujoco.mj_getState(model, self._env.data, self._before, self._kind)
        self._env.step(action)
        self._mujoco.mj_setState(model, self._data, self._before, self._kind)
        began = _now()
        self._mujoco.mj_step(model, self._data, 25)
        return _since(began)


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # LIBERO prints

    def answer(**values: Any) -> None:
        print(json.dumps(values), file=answers, flush=True)

    try:
        entry = Entry.from_json(sys.argv[1])
        kinds: dict[str, Callable[[Entry], Runner]] = {"libero": Libero, "ours": Ours, "mj_step": MjStep}
        runner = kinds[entry.who](entry)
        runner.reset()
        answer(at=time.monotonic(), drawn_by=runner.drawn_by())
        actions = np.random.default_rng(0).uniform(-1.0, 1.0, (MAX_STEPS, 7))
        done = 0
        for line in sys.stdin:
            request, _, times = line.strip().partition(" ")
            if request == "start":
                answer(**_start_episode(runner))
                done = 0
            elif request == "run":
                seconds = [runner.step(action) for action in actions[done : done + int(times)]]
                done += int(times)
                answer(seconds=seconds, state=runner.state().tolist())
    except TgrpoError as error:
        answer(error=str(error))


def _now() -> Seconds:
    return time.perf_counter(), time.process_time()


def _since(began: Seconds) -> Seconds:
    clock, processor = _now()
    return clock - began[0], processor - began[1]


def _start_episode(runner: Runner) -> dict[str, float]:
    """Seconds of a reset to its first observation, and of the episode's whole start; MiB that the process holds."""
    from stages.sim.env import NO_OP

    began = time.perf_counter()
    runner.reset()
    reset = time.perf_counter() - began
    for _ in range(_SETTLE_STEPS):
        runner.step(NO_OP)
    return {"reset": reset, "start": time.perf_counter() - began, "memory": _resident_mib()}


def _resident_mib() -> float:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


if __name__ == "__main__":
    main()
