"""What runs in each process of a `VectorEnv`: one environment that answers commands until the pipe closes."""

import os
import sys
import traceback
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.errors import SimulatorError, TgrpoError
from stages.params import SimParams
from stages.sim.assets import Assets
from stages.types import InitialState, Scene, Task


@dataclass(frozen=True)
class Ready:
    """The first answer: the environment stands."""

    object_names: tuple[str, ...]
    state_size: int


@dataclass(frozen=True)
class Outcome:
    """The answer to a reset or a step. The image lies in the shared memory by then."""

    proprio: NDArray[np.float32]  # (8,)
    scene: Scene
    sim_state: NDArray[np.float64]  # (K, S)
    env_steps: int


@dataclass(frozen=True)
class Failure:
    """The last answer: what went wrong. The process ends."""

    error: TgrpoError


Command = InitialState | NDArray[np.float64]  # reset to a start, or step with an action (7,)


def run_worker(connection: Connection, image_memory: Any, task: Task, sim: SimParams, assets: Assets) -> None:
    """Serves one environment until the parent kills it, or is gone.

    Args:
        connection: commands in, `Ready`, `Outcome` and `Failure` out.
        image_memory: shared bytes for one image (H, W, 3).
        task, sim, assets: as for `LiberoEnv`.
    """
    os.dup2(2, 1)  # the parent prints handles on this stdout: nothing here may write to it, not even C code
    sys.stdout = sys.stderr
    image = np.frombuffer(image_memory, np.uint8).reshape(sim.image_size, sim.image_size, 3)
    try:
        from stages.sim.env import LiberoEnv

        env = LiberoEnv(task, sim, assets)
        connection.send(Ready(env.object_names, env.state_size))
        while True:
            command: Command = connection.recv()
            states = [] if isinstance(command, InitialState) else _hold(env, command, sim.action_repeat)
            if isinstance(command, InitialState):
                env.reset(command)
            image[:] = env.render()
            rows = states + [env.state()] * (sim.action_repeat - len(states))
            connection.send(Outcome(env.proprio(), env.scene(), np.stack(rows), len(states)))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return  # the parent is gone
    except TgrpoError as error:
        connection.send(Failure(error))
    except Exception as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(frame.filename).name}:{frame.lineno}"
        connection.send(Failure(SimulatorError(f"{type(error).__name__} in {where}: {' '.join(str(error).split())}")))


def _hold(env: Any, action: NDArray[np.float64], repeat: int) -> list[NDArray[np.float64]]:
    """Steps up to `repeat` times with one action, until the goal is reached; the states after each step."""
    states = []
    for _ in range(repeat):
        success = env.step(action)
        states.append(env.state())
        if success:
            break
    return states
