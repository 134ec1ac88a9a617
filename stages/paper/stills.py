"""Stills of an episode in a row, from its simulator states (figure 5)."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stages.film import CAMERA
from stages.params import Params
from stages.types import InitialState

FRAMES = 6
SIZE = 128  # pixels of each, square


def draw_stills(params: Params, start: InitialState, states: NDArray[np.float64], out: Path) -> None:
    """Renders `FRAMES` states, evenly spread from the first to the last, side by side into a PNG.

    Args:
        start: of the episode: the reset under it puts the fixtures, which a state does not hold, in their places.
        states: (N, S) MuJoCo states of the params' task, N >= 1.
    """
    from PIL import Image

    from stages.sim.assets import resolve_assets
    from stages.sim.env import LiberoEnv
    from stages.sim.tasks import load_task

    sim = params.sim.model_copy(update={"settle_steps": 0})
    env = LiberoEnv(load_task(params.task), sim, resolve_assets(sim))
    try:
        env.reset(start)
        frames = []
        for index in np.linspace(0, len(states) - 1, FRAMES).round().astype(int):
            env.set_state(states[index])
            frames.append(env.render(SIZE, CAMERA))
    finally:
        env.close()
    # 256 colours of their own are enough for a small picture, and a third of the bytes.
    Image.fromarray(np.concatenate(frames, axis=1)).quantize(256).save(out, optimize=True)
