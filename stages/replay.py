"""`tgrpo replay`: runs saved groups again and compares what the simulator gives with what they hold, bit for bit.

Every trajectory starts from the group's initial state and takes its stored actions. All that the simulator put into the
group is compared: the state after every environment step, success, the scene that rewards read, proprioception, images.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from stages.errors import MismatchError, UsageError
from stages.film import CAMERA, FILM_SIZE, film_group, with_assets_of
from stages.params import Params, SimParams
from stages.reporting import Advance, Reporter, Silent
from stages.sim.backends import choose_backend
from stages.store.groups import Group, open_group
from stages.store.handles import Handle
from stages.store.provenance import package_versions
from stages.types import Scene

if TYPE_CHECKING:
    from stages.sim.assets import Assets
    from stages.sim.env import LiberoEnv

# Their versions decide the states: tasks, controller, physics, and the linear algebra under the controller.
PACKAGES = ("hf-libero", "robosuite", "mujoco", "numpy")
# What a group's own params decide of its replay; the rest, such as the renderer, is this machine's business.
RECORDED = (
    *("physics", "action_repeat", "settle_steps", "arm_noise"),
    *("observe", "image_size", "shadows", "multisampling"),
)
UNRECORDED = {"physics": "exact", "observe": "latest", "arm_noise": 0.0}  # what tgrpo did before these were params


@dataclass
class Compared:
    """How much was found equal."""

    states: int = 0  # one for the settled start, one for each environment step
    images: int = 0


def replay_group(
    env: "LiberoEnv", group: Group, trajectories: Sequence[int], *, images: bool = True, advance: Advance | None = None
) -> Compared:
    """The core: runs some trajectories of a group in an environment of its task, sim params and assets.

    Args:
        images: render and compare the images too.
        advance: called after each decision.

    Raises:
        MismatchError: at the first value that differs: where, which quantity, and by how much at most.
    """
    from stages.sim.starts import parse_start

    if env.object_names != group.attrs.object_names or env.state_size != group["initial_state"].shape[0]:
        raise MismatchError(
            f"the scene of {env.task.id} has {len(env.object_names)} objects and states of {env.state_size} entries here, "
            f"the group {len(group.attrs.object_names)} and {group['initial_state'].shape[0]}"
        )
    env.reset(parse_start(group.attrs.initial_state))
    compare("the settled start", "state", env.state(), group["initial_state"][:])
    _compare_scene("the settled start", env.scene(), group.initial_scene())
    settled, first_seen = env.snapshot(), _seen(env, images)
    done = Compared(states=1)
    scenes = group.scene()
    for g in trajectories:
        env.restore(settled)
        length, env_steps = int(group["length"][g]), group["env_steps"][g]
        action, states = group["action"][g], group["sim_state"][g]
        stored_seen = {name: group[name][g, :length] for name in first_seen}
        seen = first_seen
        for t in range(length):
            where = f"trajectory {g}, decision {t}"
            for name, value in seen.items():
                compare(where, name, value, stored_seen[name][t])
            done.images += images
            for k in range(int(env_steps[t])):
                where = f"trajectory {g}, decision {t}, environment step {k + 1} of {env_steps[t]}"
                success = env.step(action[t])
                compare(where, "state", env.state(), states[t, k])
                done.states += 1
                if success and k + 1 < env_steps[t]:  # the decision would have ended here
                    compare(where, "success", np.array(True), np.array(False))
            _compare_scene(where, env.scene(), scenes[g, t])
            seen = _seen(env, images)
            if advance is not None:
                advance(1, f"trajectory {g}")
    return done


def compare(where: str, quantity: str, found: NDArray[Any], stored: NDArray[Any]) -> None:
    """Compares two arrays of one shape and dtype by their bytes.

    Raises:
        MismatchError: they differ; the message tells booleans, counts numbers, and names the largest difference.
    """
    if found.tobytes() == stored.tobytes():
        return
    if found.ndim == 0:
        raise MismatchError(f"{where}: {quantity} is {found}, the group has {stored}")
    if found.dtype == np.bool_:
        raise MismatchError(f"{where}: {quantity} is {found.tolist()}, the group has {stored.tolist()}")
    difference = np.abs(found.astype(np.float64) - stored.astype(np.float64))
    raise MismatchError(
        f"{where}: {quantity} differs in {np.count_nonzero(difference)} of {difference.size} entries, at most by "
        f"{difference.max():.3g} (entry {', '.join(map(str, np.unravel_index(difference.argmax(), difference.shape)))})"
    )


def _compare_scene(where: str, found: Scene, stored: Scene) -> None:
    for name, value in vars(found).items():
        compare(where, name, np.asarray(value), np.asarray(getattr(stored, name)))


def _seen(env: "LiberoEnv", images: bool) -> dict[str, NDArray[Any]]:
    """What the next decision sees, by the names of the group's arrays."""
    return {"proprio": env.proprio(), **({"image": env.render()} if images else {})}


def replay(
    params: Params,
    groups: Iterable[Handle],
    *,
    images: bool = True,
    trajectory: int | None = None,
    reporter: Reporter | None = None,
) -> Iterator[Handle]:
    """Replays each group as its handle arrives; yields the handle, with what was compared, when all of it is equal.

    Images are compared where they can be equal: under the renderer and the versions that the group records.

    Args:
        params: where assets are and how to render on this machine; all else comes from the group.
        images: false leaves them out.
        trajectory: only this one, from 0.

    Raises:
        MismatchError: a value differs, or the assets are others than those of the group.
        ArtifactError: no group.
        UsageError: no such trajectory, or a group of scripted probes.
    """
    reporter = reporter or Silent()
    with closing(_Environments(params.sim)) as environments:
        for handle in groups:
            group = open_group(handle.path, incomplete=True)
            if group.attrs.labels:
                raise UsageError(
                    f"{group.path} holds scripted probes, whose actions change within a decision: they cannot be run again, "
                    "but shown, with --render FILM.mp4"
                )
            chosen = _pick(group, trajectory)
            env = environments.of(group)
            versions = _other_versions(group)
            blind = (versions or _other_renderer(group, params.sim)) if images else None
            if not group.complete:
                reporter.note(f"{group.path} is incomplete: the simulator failed after {group.decisions} decisions")
            if versions:
                reporter.note(f"{group.path} {versions}: a difference is likely")
            if blind:
                reporter.note(f"{group.path} {blind}: images are not compared")
            with reporter.bar(f"replay {group.path.name}", sum(int(group["length"][g]) for g in chosen)) as advance:
                try:
                    done = replay_group(env, group, chosen, images=images and not blind, advance=advance)
                except MismatchError as error:
                    cause = f"the group {versions}" if versions else "was it changed, or made by another tgrpo?"
                    raise MismatchError(f"{group.path} does not replay: {error}; {cause}") from None
            compared = {"trajectories": len(chosen), "states": done.states, "images": done.images}
            yield _handle(handle, group, compared)


def film(
    params: Params, handle: Handle, out: Path, *, trajectory: int | None = None, size: int | None, camera: str | None
) -> Handle:
    """Films a group from its stored states, without running physics; size and camera have the defaults of any film.

    Raises:
        UsageError: no such trajectory, a size out of range, or `out` is no .mp4.
        SimulatorError: no such camera.
    """
    group = open_group(handle.path, incomplete=True)
    chosen = _pick(group, trajectory)
    size = FILM_SIZE if size is None else size
    film_group(params, group, out, trajectories=chosen, size=size, camera=camera or CAMERA)
    return _handle(handle, group, {"trajectories": len(chosen), "film": out.as_posix()})


class _Environments:
    """The environment of the group at hand, kept for the next group if that asks for the same."""

    def __init__(self, sim: SimParams) -> None:
        self._sim = sim
        self._env: LiberoEnv | None = None
        self._assets: Assets | None = None
        self._made_for: tuple[str, SimParams] | None = None

    def of(self, group: Group) -> "LiberoEnv":
        from stages.sim.assets import resolve_assets
        from stages.sim.env import LiberoEnv
        from stages.sim.tasks import load_task

        recorded, made_with = {**UNRECORDED, **group.attrs.params["sim"]}, group.attrs.params["assets"]
        kept = {name: recorded[name] for name in RECORDED}
        sim = with_assets_of(group, self._sim).model_copy(update=kept)
        wanted = (group.attrs.task, sim)
        if self._env is None or self._assets is None or self._made_for != wanted:
            self.close()
            self._assets = resolve_assets(sim)
        if self._assets.digest != made_with["digest"]:
            remedy = (
                f"name the folder of those in --set sim.assets_dir (here: {self._assets.path})"
                if self._assets.kind == "libero"
                else f"they come with tgrpo {group.versions.get('tgrpo', 'of another version')}"
            )
            raise MismatchError(
                f"{group.path} was made with {made_with['kind']} assets of digest {made_with['digest']}, found "
                f"{self._assets.digest}; {remedy}"
            )
        if self._env is None:
            self._env = LiberoEnv(load_task(group.attrs.task), sim, self._assets)
            self._made_for = wanted
        return self._env

    def close(self) -> None:
        if self._env is not None:
            self._env.close()
        self._env = None


def _pick(group: Group, trajectory: int | None) -> list[int]:
    if trajectory is None:
        return list(range(group.trajectories))
    if not 0 <= trajectory < group.trajectories:
        raise UsageError(
            f"{group.path} has no trajectory {trajectory}; expected 0 to {group.trajectories - 1} (--trajectory)"
        )
    return [trajectory]


def _other_versions(group: Group) -> str | None:
    """Which packages that decide the states differ from the group's."""
    here = package_versions()
    other = [name for name in PACKAGES if group.versions.get(name) != here.get(name)]
    if not other:
        return None
    then = ", ".join(f"{name} {group.versions.get(name, '(not recorded)')}" for name in other)
    return f"was made with {then}, here is {', '.join(here.get(name, 'none') for name in other)}"


def _other_renderer(group: Group, sim: SimParams) -> str | None:
    """Why the images here cannot be expected to equal the group's."""
    here, recorded = choose_backend(sim.renderer), group.attrs.params.get("renderer")
    if recorded is None:
        return "does not say which renderer made its images"
    return f"was rendered by {recorded}, here is {here}" if recorded != here else None


def _handle(handle: Handle, group: Group, extra: dict[str, Any]) -> Handle:
    """The group's own handle, so that it can be piped on, with the replay's figures in place of its summary."""
    incomplete = {} if group.complete else {"incomplete": True}
    return Handle(handle.kind, handle.path, handle.digest, handle.task, extra | incomplete)
