"""Films from simulator states: what happened can be looked at later, larger and smoother than the policy saw it."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from stages.errors import UsageError
from stages.params import Params, SimParams
from stages.types import ENV_STEPS_PER_SECOND, InitialState

if TYPE_CHECKING:
    from stages.sim.env import LiberoEnv
    from stages.store.groups import Group

FILM_SIZE = 256  # pixels
SIZES = (16, 1024)
CAMERA = "agentview"
FRAME_EVERY = 2  # environment steps, so 10 frames per second


def film_trajectories(
    params: Params,
    trajectories: Sequence[NDArray[np.float64]],
    out: Path,
    *,
    start: InitialState | None = None,
    size: int = FILM_SIZE,
    camera: str = CAMERA,
) -> None:
    """Renders trajectories of MuJoCo states, each (T, S), of the params' task side by side into an MP4 at real speed.

    A shorter one stays on its last frame. No physics runs, and memory holds one frame of each.

    Args:
        out: the film; what lies there is replaced, and stays when filming fails.
        start: where the trajectories start. A state holds no fixtures, which LIBERO's sampler moves too: the reset under
            this start puts them in their places. None leaves them where the official states have them.
        size: pixels of each square image, 16 to 1024.
        camera: a camera of the scene.

    Raises:
        UsageError: `out` is no .mp4, or a size out of range.
        SimulatorError: no such camera, or states of another task.
    """
    import imageio.v2 as imageio

    from stages.sim.assets import resolve_assets
    from stages.sim.env import LiberoEnv
    from stages.sim.tasks import load_task

    if out.suffix != ".mp4":
        raise UsageError(f"the film {out} must end in .mp4")
    if not SIZES[0] <= size <= SIZES[1]:
        raise UsageError(f"a film of {size} pixels cannot be made; expected {SIZES[0]} to {SIZES[1]}")
    sim = params.sim.model_copy(update={"settle_steps": 0})
    env = LiberoEnv(load_task(params.task), sim, resolve_assets(sim))
    partial = out.with_name(f".{out.stem}.partial.mp4")
    try:
        if start is not None:
            env.reset(start)
        frames = _frames(env, trajectories, size, camera)
        first = next(frames)  # a camera that does not exist is found out before anything is written
        out.parent.mkdir(parents=True, exist_ok=True)
        fps = ENV_STEPS_PER_SECOND / FRAME_EVERY
        film: Any
        with imageio.get_writer(partial, fps=fps, codec="libx264", macro_block_size=2) as film:
            for frame in (first, *frames):
                film.append_data(frame)
        partial.replace(out)
    finally:
        env.close()
        partial.unlink(missing_ok=True)


def film_group(
    params: Params,
    group: "Group",
    out: Path,
    *,
    trajectories: Sequence[int] | None = None,
    size: int = FILM_SIZE,
    camera: str = CAMERA,
) -> None:
    """Films some of a group's trajectories (None: all) with the assets they were made with; the look is the params' own.

    Raises:
        UsageError, SimulatorError: see `film_trajectories`.
    """
    from stages.sim.starts import parse_start

    sim = with_assets_of(group, params.sim)
    film_trajectories(
        params.model_copy(update={"task": group.attrs.task, "sim": sim}),
        [group.states(g) for g in (range(group.trajectories) if trajectories is None else trajectories)],
        out,
        start=parse_start(group.attrs.initial_state),
        size=size,
        camera=camera,
    )


def with_assets_of(group: "Group", sim: SimParams) -> SimParams:
    """The params with the kind of assets that a group was made with, where params or else the group say they lie."""
    folder = sim.assets_dir or group.attrs.params["sim"].get("assets_dir")
    return sim.model_copy(update={"assets": group.attrs.params["assets"]["kind"], "assets_dir": folder})


def _frames(
    env: "LiberoEnv", trajectories: Sequence[NDArray[np.float64]], size: int, camera: str
) -> Iterator[NDArray[np.uint8]]:
    """The film's frames (H, W, 3), of even height and width, which the codec needs."""
    shown = [states[::FRAME_EVERY] for states in trajectories]
    images: list[NDArray[np.uint8]] = [np.empty((size, size, 3), np.uint8)] * len(shown)
    for t in range(max(map(len, shown))):
        for g, states in enumerate(shown):
            if t < len(states):
                env.set_state(states[t])
                images[g] = env.render(size, camera)
        row = np.concatenate(images, axis=1)
        yield np.pad(row, ((0, row.shape[0] % 2), (0, row.shape[1] % 2), (0, 0)), mode="edge")
