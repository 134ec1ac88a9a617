"""Runs episodes in LIBERO's own environment, in a process of its own, for tests to compare with.

Its renderer would fight with ours for the current OpenGL context, hence the process.
"""

import pickle
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.params import SimParams
from stages.sim.assets import resolve_assets
from stages.sim.env import NO_OP
from stages.sim.runtime import prepare
from stages.sim.tasks import load_task

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Episode:
    """What to run: LIBERO's protocol (seed, reset, `set_init_state` unless the state is None, no-ops), then actions."""

    task: str
    seed: int
    state: NDArray[np.float64] | None  # (S,)
    actions: NDArray[np.float64]  # (T, 7)
    watched: int  # so many actions are watched by the camera, 256 px; 0 is none, and no image of the start

    def __str__(self) -> str:
        return f"{self.task} seed {self.seed}, {len(self.actions)} actions"


@dataclass(frozen=True)
class Record:
    """What LIBERO showed: after settling, then after every action, hence T + 1 rows."""

    states: NDArray[np.float64]  # (T + 1, S)
    success: NDArray[np.bool_]  # (T + 1,)
    proprio: NDArray[np.float64]  # (T + 1, 9) grip site, hand (x, y, z, w), fingers
    images: list[NDArray[np.uint8]]  # `watched` + 1 of (256, 256, 3) as OpenGL has them, upside down


def run_in_libero(sim: SimParams, episodes: list[Episode]) -> list[Record]:
    """One fresh LIBERO environment for each episode, one after the other in a child process."""
    with tempfile.TemporaryDirectory() as folder:
        asked, answered = Path(folder) / "episodes", Path(folder) / "records"
        asked.write_bytes(pickle.dumps((sim, episodes)))
        command = [sys.executable, "-c", f"from {__name__} import main; main()", str(asked), str(answered)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        return pickle.loads(answered.read_bytes())


def _run(sim: SimParams, episode: Episode) -> Record:
    from libero.libero.envs.env_wrapper import OffScreenRenderEnv

    env = OffScreenRenderEnv(
        bddl_file_name=str(load_task(episode.task).bddl_file),
        camera_heights=256,
        camera_widths=256,
        camera_names=["agentview"],
        use_camera_obs=episode.watched > 0,
    )
    env.seed(episode.seed)
    shown = env.reset()
    state = _drawn(sim, episode) if episode.state is None and sim.arm_noise else episode.state
    if state is not None:
        shown = env.set_init_state(state)
    for _ in range(sim.settle_steps):
        shown = env.step(NO_OP)[0]
    rows: list[tuple[Any, ...]] = []
    images = [shown["agentview_image"]] if episode.watched else []
    done = env.check_success()
    for step, action in enumerate([*episode.actions, None]):
        eyes = [shown[f"robot0_{name}"] for name in ("eef_pos", "eef_quat", "gripper_qpos")]
        rows.append((env.get_sim_state(), done, np.concatenate(eyes)))
        if action is not None:
            shown, _, done, _ = env.step(action)
        if step < episode.watched:
            images.append(shown["agentview_image"])
            if step + 1 == episode.watched:  # the rest of the episode need not be rendered
                env.env._observables["agentview_image"].set_enabled(False)
    env.close()
    states, success, proprio = zip(*rows, strict=True)
    return Record(np.stack(states), np.array(success), np.stack(proprio), images)


def _drawn(sim: SimParams, episode: Episode) -> NDArray[np.float64]:
    """A state as the official ones were drawn: LIBERO's reset with noise on the arm's joints."""
    from libero.libero.envs.env_wrapper import ControlEnv

    env = ControlEnv(
        bddl_file_name=str(load_task(episode.task).bddl_file),
        use_camera_obs=False,
        has_renderer=False,
        has_offscreen_renderer=False,
        initialization_noise={"magnitude": sim.arm_noise, "type": "gaussian"},
    )
    env.seed(episode.seed)
    env.reset()
    state: NDArray[np.float64] = env.get_sim_state()
    env.close()
    return state


def main() -> None:
    """What the child process does: reads (SimParams, episodes) from the first path, writes records to the second."""
    sim, episodes = pickle.loads(Path(sys.argv[1]).read_bytes())
    prepare(sim, resolve_assets(sim).path, liberos_renderer=True)
    Path(sys.argv[2]).write_bytes(pickle.dumps([_run(sim, episode) for episode in episodes]))
