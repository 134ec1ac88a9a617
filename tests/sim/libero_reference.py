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
    images: bool  # observe with cameras, 256 px

    def __str__(self) -> str:
        return f"{self.task} seed {self.seed}, {len(self.actions)} actions"


@dataclass(frozen=True)
class Record:
    """What LIBERO showed: after settling, then after every action, hence T + 1 rows."""

    states: NDArray[np.float64]  # (T + 1, S)
    success: NDArray[np.bool_]  # (T + 1,)
    proprio: NDArray[np.float64]  # (T + 1, 9) grip site, hand (x, y, z, w), fingers
    images: NDArray[np.uint8] | None  # (T + 1, 256, 256, 3) as OpenGL has them, upside down


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
        use_camera_obs=episode.images,
    )
    env.seed(episode.seed)
    shown = env.reset()
    if episode.state is not None:
        shown = env.set_init_state(episode.state)
    for _ in range(sim.settle_steps):
        shown = env.step(NO_OP)[0]
    rows: list[tuple[Any, ...]] = []
    done = env.check_success()
    for action in [*episode.actions, None]:
        eyes = [shown[f"robot0_{name}"] for name in ("eef_pos", "eef_quat", "gripper_qpos")]
        rows.append((env.get_sim_state(), done, np.concatenate(eyes), shown.get("agentview_image")))
        if action is not None:
            shown, _, done, _ = env.step(action)
    env.close()
    states, success, proprio, images = zip(*rows, strict=True)
    return Record(np.stack(states), np.array(success), np.stack(proprio), np.stack(images) if episode.images else None)


def main() -> None:
    """What the child process does: reads (SimParams, episodes) from the first path, writes records to the second."""
    sim, episodes = pickle.loads(Path(sys.argv[1]).read_bytes())
    prepare(sim, resolve_assets(sim).path)
    Path(sys.argv[2]).write_bytes(pickle.dumps([_run(sim, episode) for episode in episodes]))
