"""Trajectory groups: streamed to disk while the rollout runs, valid only when whole, read back by array name."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stages.errors import SimulatorError
from stages.store.artifacts import atomic_directory
from stages.store.provenance import from_record
from stages.store.schema import CHUNKS, GROUP_ARRAYS, GROUP_VERSION, ArraySpec, GroupAttrs
from stages.store.zarr_files import complete, create_arrays, open_checked
from stages.types import Scene, SceneNames

if TYPE_CHECKING:
    import zarr

Score = Callable[[Scene, Scene, NDArray[np.int16]], tuple[NDArray[np.float32], NDArray[np.int8]]]
"""The scene at the start, the scenes (G, T) and env_steps (G, T) -> reward and milestone (G, T).

Where env_steps is 0 no decision was taken: the scene is all zeros, and what is returned there does not matter."""

_SCENE_FIELDS = tuple(f.name for f in fields(Scene))
_SCORED = {spec.name: spec for spec in GROUP_ARRAYS if spec.name in ("reward", "milestone")}
_STREAMED = {spec.name: spec for spec in GROUP_ARRAYS if "T" in spec.dims and spec.name not in _SCORED}


@dataclass(frozen=True)
class GroupSummary:
    """A group in four numbers, for handles and tables."""

    successes: int  # trajectories that ended in success
    mean_return: float
    mean_length: float  # decisions
    env_steps: int  # all trajectories together


class GroupWriter:
    """Appends decisions to a group in the making. Made by `write_group`.

    Decisions are held back until a zarr chunk of their array is full, so memory stays bounded (16 frames and 64 states
    a trajectory) however long the group gets; but for the scenes, which are small, and are scored all at once in the end.
    """

    def __init__(
        self,
        folder: Path,
        attrs: GroupAttrs,
        trajectories: int,
        initial_state: ArrayLike,
        initial_scene: Scene,
        score: Score,
    ) -> None:
        state = np.asarray(initial_state, np.float64)
        self._folder = folder
        self._attrs = attrs
        self._sizes = {
            "G": trajectories,
            "T": 0,
            "K": attrs.action_repeat,
            "O": len(attrs.object_names),
            "J": len(attrs.joint_names),
            "R": len(attrs.place_names),
            "Q": len(attrs.goals),
            "S": state.size,
            "H": attrs.image_size,
            "W": attrs.image_size,
        }
        self._arrays = create_arrays(folder, GROUP_ARRAYS, self._sizes)
        self._pending: dict[str, list[NDArray[Any]]] = {name: [] for name in _STREAMED}
        self._write_whole("initial_state", state)
        for name in _SCENE_FIELDS:
            self._write_whole(f"initial_{name}", getattr(initial_scene, name))
        self._score = partial(score, initial_scene)
        self._scenes: list[Scene] = []
        self._env_steps: list[NDArray[np.int16]] = []
        self._taken = np.ones(trajectories, np.bool_)
        self._length = np.zeros(trajectories, np.int32)
        self._succeeded = np.zeros(trajectories, np.bool_)

    def append(self, *, mask: ArrayLike, scene: Scene, **arrays: ArrayLike) -> None:
        """Adds decision t of all G trajectories.

        Args:
            mask: (G,) which trajectories took this decision; one that has ended never comes back.
            scene: leading axis G, the world after the decision.
            **arrays: every other array of the schema that has an axis T, without that axis: image (G, H, W, C),
                proprio, action_token, action, action_label, log_prob, entropy, env_steps, sim_state. But for reward and
                milestone, which are found at the end.

        Rows where the mask is false are padding: whatever they hold, zeros are stored.

        Raises:
            ValueError: an array is missing, unknown, of another shape or of a dtype that would lose its kind, or a
                trajectory that had ended takes a decision.
        """
        taken = np.asarray(mask, np.bool_)
        if taken.shape != self._taken.shape or (taken & ~self._taken).any():
            raise ValueError(f"mask {taken} after {self._taken}: expected (G,), and an ended trajectory to stay ended")
        step = {**arrays, "mask": taken, **{name: getattr(scene, name) for name in _SCENE_FIELDS}}
        if step.keys() != _STREAMED.keys():
            raise ValueError(f"missing or unknown arrays: {sorted(step.keys() ^ _STREAMED.keys())}")
        rows = {name: self._row(spec, step[name], taken) for name, spec in _STREAMED.items()}
        self._taken = taken
        self._length += taken
        self._succeeded = np.where(taken, rows["success"], self._succeeded)
        self._scenes.append(Scene(**{name: rows[name] for name in _SCENE_FIELDS}))
        self._env_steps.append(rows["env_steps"])
        for name, row in rows.items():
            self._pending[name].append(row)
            if len(self._pending[name]) == CHUNKS[_STREAMED[name].chunks].decisions:
                self._flush(name)

    @property
    def decisions(self) -> int:
        """Appended so far."""
        return len(self._scenes)

    def finish(self, *, whole: bool = True) -> None:
        """Scores the trajectories and writes what is held back, then the attributes, `complete` last: false for a group that
        was cut short.

        `write_group` calls it.
        """
        if not self._scenes:
            raise ValueError("a group needs at least one decision")
        for name in _STREAMED:
            self._flush(name)
        self._write_whole("length", self._length)
        env_steps = np.stack(self._env_steps, axis=1)
        reward = write_scores(self._arrays, *self._score(Scene.stack(self._scenes, axis=1), env_steps), env_steps > 0)
        summary = GroupSummary(
            successes=int(self._succeeded.sum()),
            mean_return=_mean_return(reward),
            mean_length=float(self._length.mean()),
            env_steps=int(env_steps.sum()),
        )
        attrs = {**asdict(self._attrs), "summary": asdict(summary)}
        complete(self._folder, "group", GROUP_VERSION, attrs, whole=whole)

    def _row(self, spec: ArraySpec, value: ArrayLike, taken: NDArray[np.bool_]) -> NDArray[Any]:
        """One decision (G, ...) of an array, checked, in the array's dtype, zero where not taken; always a copy."""
        given = np.asarray(value)
        shape = tuple(size for dim, size in zip(spec.dims, spec.shape(self._sizes), strict=True) if dim != "T")
        if given.shape != shape or not np.can_cast(given.dtype, spec.dtype, "same_kind"):
            raise ValueError(f"{spec.name}: got {given.dtype} {given.shape}, expected {spec.dtype} {shape}")
        return np.where(taken.reshape(-1, *[1] * (given.ndim - 1)), given, 0).astype(spec.dtype)

    def _flush(self, name: str) -> None:
        rows = self._pending[name]
        if rows:
            array = self._arrays[name]
            start = array.shape[1]
            array.resize((array.shape[0], start + len(rows), *array.shape[2:]))
            array[:, start:] = np.stack(rows, axis=1)
            rows.clear()

    def _write_whole(self, name: str, value: ArrayLike) -> None:
        array = self._arrays[name]
        given = np.asarray(value)
        if given.shape != array.shape:
            raise ValueError(f"{name}: got {given.shape}, expected {array.shape}")
        array[...] = given.astype(array.dtype)


def write_scores(
    arrays: Mapping[str, zarr.Array[Any]], reward: ArrayLike, milestone: ArrayLike, taken: NDArray[np.bool_]
) -> NDArray[np.float32]:
    """Writes the arrays `reward` and `milestone` of a group whose other arrays are written; returns the rewards as stored.

    Args:
        reward, milestone, taken: (G, T); zero is stored where a decision was not taken.

    Raises:
        ValueError: another shape, or a dtype that would lose its kind.
    """
    stored = {}
    for name, value in (("reward", reward), ("milestone", milestone)):
        given, dtype = np.asarray(value), _SCORED[name].dtype
        if given.shape != taken.shape or not np.can_cast(given.dtype, dtype, "same_kind"):
            raise ValueError(f"{name}: got {given.dtype} {given.shape}, expected {dtype} {taken.shape}")
        stored[name] = np.where(taken, given, 0).astype(dtype)
        arrays[name].resize(taken.shape)
        arrays[name][...] = stored[name]
    return stored["reward"]


def _mean_return(reward: NDArray[np.float32]) -> float:
    return float(reward.astype(np.float64).sum(axis=1).mean())


@contextmanager
def write_group(
    path: Path,
    attrs: GroupAttrs,
    *,
    trajectories: int,
    initial_state: ArrayLike,
    initial_scene: Scene,
    score: Score,
    overwrite: bool = False,
) -> Iterator[GroupWriter]:
    """Yields a writer; the group appears at `path`, whole, when the block ends, and never when it raises.

    When the simulator fails, the decisions appended so far are kept at `incomplete_path(path)`, marked incomplete, in
    place of what an earlier failure left there; the error that goes on then names that path. Any other exception leaves
    nothing.

    Args:
        path: the group's folder, by convention ending in `.zarr`.
        attrs: what the group records about itself.
        trajectories: G.
        initial_state: (S,) flattened MuJoCo state of the settled start.
        initial_scene: no leading axes.
        score: is called once, when all decisions are there.
        overwrite: exchange what lies at `path` for the new group.

    Raises:
        ArtifactError: `path` exists and `overwrite` is false.
        SimulatorError: the block's own.
        TgrpoError: the disk is full, or what `score` raises.
    """
    with atomic_directory(path, overwrite) as folder:
        writer = GroupWriter(folder, attrs, trajectories, initial_state, initial_scene, score)
        try:
            yield writer
        except SimulatorError as error:
            if writer.decisions == 0:
                raise
            writer.finish(whole=False)
            kept = incomplete_path(path)
            with atomic_directory(kept, overwrite=True) as place:
                for entry in folder.iterdir():
                    entry.rename(place / entry.name)
            raise SimulatorError(
                f"{error}; the decisions so far ({writer.decisions}) are kept in {kept}, marked incomplete"
            ) from error
        writer.finish()


def write_rescored(path: Path, source: Group, attrs: GroupAttrs, score: Score, overwrite: bool = False) -> None:
    """Writes a group that has another's arrays to the last byte, but for reward and milestone, which `score` finds.

    Args:
        attrs: what the new group records about itself.

    Raises:
        ArtifactError: `path` exists and `overwrite` is false.
        TgrpoError: the disk is full, or what `score` raises.
    """
    import zarr

    with atomic_directory(path, overwrite) as folder:
        shutil.copytree(source.path, folder, dirs_exist_ok=True)
        arrays = zarr.open_group(folder, mode="r+")
        env_steps = source["env_steps"][:]
        stored = {name: cast("zarr.Array[Any]", arrays[name]) for name in _SCORED}
        reward = write_scores(stored, *score(source.initial_scene(), source.scene(), env_steps), source["mask"][:])
        summary = replace(source.summary, mean_return=_mean_return(reward))
        complete(folder, "group", GROUP_VERSION, {**asdict(attrs), "summary": asdict(summary)})


def incomplete_path(path: Path) -> Path:
    """Where a group planned at `path` is kept when the simulator fails: `g.incomplete.zarr` for `g.zarr`."""
    return path.with_name(f"{path.stem}.incomplete{path.suffix}")


class StoredArray(Protocol):
    """An array on disk: a zarr array, whose parts become NumPy when they are indexed."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype[Any]: ...

    def __getitem__(self, selection: Any) -> NDArray[Any]: ...


class Group:
    """A group on disk, read lazily: `group["image"][0, :5]` reads one chunk into NumPy. Made by `open_group`."""

    def __init__(self, path: Path, arrays: zarr.Group, record: dict[str, Any], sizes: dict[str, int]) -> None:
        self.path = path
        self.attrs = _with_tuples(from_record(GroupAttrs, record, path, "group"))
        self.summary = from_record(GroupSummary, record.get("summary", {}), path, "group")
        self.versions: dict[str, str] = record.get("versions", {})
        self.complete: bool = record["complete"]  # false: the simulator failed while the group was sampled
        self.trajectories = sizes["G"]
        self.decisions = sizes["T"]  # of the longest trajectory
        self._arrays = arrays

    def __getitem__(self, name: str) -> StoredArray:
        """The zarr array of a name of the schema; index it (`[:]` for all) to get NumPy."""
        return cast(StoredArray, self._arrays[name])

    @property
    def names(self) -> SceneNames:
        """What the axes of its scenes stand for."""
        return SceneNames(**{f.name: getattr(self.attrs, f.name) for f in fields(SceneNames)})

    def returns(self) -> NDArray[np.float64]:
        """(G,) the sum of each trajectory's rewards."""
        return self["reward"][:].astype(np.float64).sum(axis=1)

    def successes(self) -> NDArray[np.bool_]:
        """(G,) which trajectories ended in success."""
        return self["success"][:][np.arange(self.trajectories), self["length"][:] - 1]

    def states(self, trajectory: int) -> NDArray[np.float64]:
        """(N, S) the MuJoCo states of one trajectory: its settled start, then one after each environment step run."""
        length, steps = int(self["length"][trajectory]), self["env_steps"][trajectory]
        stored = self["sim_state"][trajectory, :length]
        played = [stored[t, : steps[t]] for t in range(length)]
        return np.concatenate([self["initial_state"][:][None], *played])

    def scene(self) -> Scene:
        """The world after every decision, leading axes (G, T), as rewards read it."""
        return Scene(**{name: self[name][:] for name in _SCENE_FIELDS})

    def initial_scene(self) -> Scene:
        """The world at the start, no leading axes."""
        return Scene(**{name: self[f"initial_{name}"][...] for name in _SCENE_FIELDS})


def _with_tuples(attrs: GroupAttrs) -> GroupAttrs:
    """JSON has lists only."""
    return replace(
        attrs,
        object_names=tuple(attrs.object_names),
        joint_names=tuple(attrs.joint_names),
        joint_ranges=tuple((low, high) for low, high in attrs.joint_ranges),
        place_names=tuple(attrs.place_names),
        goals=tuple(map(tuple, attrs.goals)),
        labels=tuple(attrs.labels),
    )


def open_group(path: Path, *, incomplete: bool = False) -> Group:
    """Opens a group for reading.

    Args:
        incomplete: also open one that the simulator's failure cut short; its trajectories may end anywhere.

    Raises:
        ArtifactError: missing, half-written or cut off, no group, of another schema version, or with an array missing
            or of another shape or dtype; or incomplete, unless that is allowed.
    """
    return Group(path, *open_checked(path, "group", GROUP_VERSION, GROUP_ARRAYS, cut_short=incomplete))
