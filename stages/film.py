"""Films from simulator states: what happened can be looked at later, larger and smoother than the policy saw it."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stages.params import Params
from stages.types import ENV_STEPS_PER_SECOND

FILM_SIZE = 256  # pixels
FRAME_EVERY = 2  # environment steps, so 10 frames per second


def film_trajectories(params: Params, trajectories: list[NDArray[np.float64]], out: Path) -> None:
    """Renders trajectories of MuJoCo states, each (T, S), of the params' task side by side into an MP4 at real speed.

    A shorter one stays on its last frame.
    """
    import imageio.v3 as iio

    from stages.sim.assets import resolve_assets
    from stages.sim.env import LiberoEnv
    from stages.sim.runtime import prepare
    from stages.sim.tasks import load_task

    prepare(params.sim)
    env = LiberoEnv(load_task(params.task), params.sim, resolve_assets(params.sim))
    try:
        strips = []
        for states in trajectories:
            frames = []
            for state in states[::FRAME_EVERY]:
                env.set_state(state)
                frames.append(env.render(FILM_SIZE))
            strips.append(frames)
    finally:
        env.close()
    length = max(len(frames) for frames in strips)
    rows = [np.concatenate([frames[min(t, len(frames) - 1)] for frames in strips], axis=1) for t in range(length)]
    iio.imwrite(out, np.stack(rows), fps=ENV_STEPS_PER_SECOND / FRAME_EVERY, codec="libx264", macro_block_size=16)
