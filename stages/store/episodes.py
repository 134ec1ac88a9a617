"""The episodes of an evaluation, decision by decision, as `episodes.zarr` in its folder: any statistic, and films, later."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import numpy as np
from numpy.typing import NDArray

from stages.errors import ArtifactError
from stages.store.groups import StoredArray
from stages.store.provenance import from_record, remedy
from stages.store.schema import ArraySpec
from stages.store.zarr_files import complete, create_arrays, open_checked
from stages.types import InitialState

if TYPE_CHECKING:
    import zarr

EPISODES = "episodes.zarr"
EPISODES_VERSION = 1
EPISODE_AXES = {"E": "episode, in the order of the start states, one repeat after the other"}  # besides `schema.AXES`

EPISODES_ARRAYS = (
    ArraySpec("official", "E", "bool", "", "whole", "it starts from an official state, not a sampled one"),
    ArraySpec("start", "E", "int64", "", "whole", "index of the official state, or seed of the sampled one"),
    ArraySpec("repeat", "E", "int32", "", "whole", "how often the start was played before, from 0"),
    ArraySpec("seed", "E", "int64", "", "whole", "of the sampled actions; without effect at temperature 0"),
    ArraySpec("success", "E", "bool", "", "whole", "LIBERO's own goal predicate came to hold"),
    ArraySpec("crashed", "E", "bool", "", "whole", "the simulator failed for good; neither success nor failure"),
    ArraySpec("length", "E", "int32", "", "whole", "decisions taken, the sum of mask over T"),
    ArraySpec("steps", "E", "int32", "1/20 s", "whole", "environment steps run, the sum of env_steps over T"),
    ArraySpec("return", "E", "float64", "", "whole", "total reward"),
    ArraySpec("milestone_at_best", "E", "int8", "", "whole", "milestone of the decision with the highest reward"),
    ArraySpec("initial_state", "E S", "float64", "", "whole", "settled start state"),
    ArraySpec("mask", "E T", "bool", "", "series", "decision t was taken; a prefix of true, then padding"),
    ArraySpec("reward", "E T", "float32", "", "series", "of the state after decision t"),
    ArraySpec("milestone", "E T", "int8", "", "series", "sub-goal reached after decision t, as the reward counts them"),
    ArraySpec("action_token", "E T A", "int32", "", "series", "chosen tokens, as ids of the policy's vocabulary"),
    ArraySpec("action", "E T A", "float64", "-1..1", "series", "what the environment got; gripper -1 opens, +1 closes"),
    ArraySpec("log_prob", "E T A", "float32", "nat", "series", "of each token, at the temperature (greedy: at 1)"),
    ArraySpec("entropy", "E T A", "float32", "nat", "series", "of each token's distribution, at the same temperature"),
    ArraySpec("env_steps", "E T", "int16", "", "series", "environment steps run for decision t, 0..K"),
    ArraySpec(
        "sim_state", "E T K S", "float64", "", "states", "after each environment step; past env_steps it repeats"
    ),
)
_PER_DECISION = [spec for spec in EPISODES_ARRAYS if "T" in spec.dims and spec.name != "mask"]


@dataclass(frozen=True)
class EpisodesAttrs:
    """What the episodes record about themselves besides their arrays (JSON, under the zarr attribute `tgrpo`)."""

    task: Annotated[str, "task id, such as `libero_object/6`"]
    instruction: Annotated[str, "what the policy was told"]
    starts: Annotated[str, "`official` or `validation`"]
    temperature: Annotated[float, "of sampling; 0 is greedy"]
    seed: Annotated[int, "the run's seed, from which every episode's own is derived"]
    repeats: Annotated[int, "times that every start was played"]
    max_env_steps: Annotated[int, "environment steps after which an episode without success ends"]
    action_repeat: Annotated[int, "K, environment steps for which a decision is held"]
    params: Annotated[Mapping[str, Any], "resolved params that can change the result"]


class Episodes:
    """The episodes of a whole evaluation. Made by `open_episodes`."""

    def __init__(self, path: Path, arrays: zarr.Group, record: dict[str, Any], sizes: dict[str, int]) -> None:
        self.path = path  # of the evaluation's folder
        self.attrs = from_record(EpisodesAttrs, record, path / EPISODES, "episodes")
        self.complete: bool = record["complete"]  # false: the simulator crashed so often that the evaluation ended
        self._arrays = arrays
        official, index = self["official"][:].tolist(), self["start"][:].tolist()
        self.starts = tuple(
            InitialState("official" if known else "sampled", n) for known, n in zip(official, index, strict=True)
        )

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, name: str) -> StoredArray:
        """The zarr array of a name of the schema; index it (`[:]` for all) to get NumPy."""
        return cast(StoredArray, self._arrays[name])

    def states(self, episode: int) -> NDArray[np.float64]:
        """(N, S) the MuJoCo states of one episode: its settled start, then one after each environment step run."""
        length, steps = int(self["length"][episode]), self["env_steps"][episode]
        stored = self["sim_state"][episode, :length]
        return np.concatenate([self["initial_state"][episode][None], *(stored[t, : steps[t]] for t in range(length))])


def write_episodes(
    folder: Path,
    attrs: EpisodesAttrs,
    *,
    starts: Sequence[InitialState],
    repeat: Sequence[int],
    seed: Sequence[int],
    success: Sequence[bool],
    crashed: Sequence[bool],
    initial_state: Sequence[NDArray[np.float64]],
    decisions: Sequence[Mapping[str, NDArray[Any]]],
    whole: bool = True,
) -> None:
    """Writes `episodes.zarr` into an evaluation's folder, which is in the making.

    Args:
        initial_state: (S,) of each episode; empty where it crashed before it had one.
        decisions: of each episode, the arrays with an axis T but `mask`, each (T, ...); empty where it took none.
        whole: false for an evaluation that ended because the simulator crashed too often.

    Raises:
        ValueError: arrays that do not belong together.
    """
    lengths = [len(series["reward"]) if series else 0 for series in decisions]
    sizes = {
        "E": len(starts),
        "T": max(lengths),
        "K": attrs.action_repeat,
        "S": max(len(state) for state in initial_state),
    }
    path = folder / EPISODES
    path.mkdir()
    arrays = create_arrays(path, EPISODES_ARRAYS, sizes)
    padded = {spec.name: np.zeros(spec.shape(sizes), spec.dtype) for spec in _PER_DECISION}
    begun = np.zeros((sizes["E"], sizes["S"]))
    for n, (state, series) in enumerate(zip(initial_state, decisions, strict=True)):
        begun[n, : len(state)] = state
        for name in padded if series else ():
            padded[name][n, : lengths[n]] = series[name]
    mask = np.arange(sizes["T"]) < np.array(lengths)[:, None]
    best = np.where(mask, padded["reward"], -np.inf).argmax(axis=1) if sizes["T"] else np.zeros(sizes["E"], np.int64)
    columns = {
        "official": [start.source == "official" for start in starts],
        "start": [start.index for start in starts],
        "repeat": repeat,
        "seed": seed,
        "success": success,
        "crashed": crashed,
        "length": lengths,
        "steps": padded["env_steps"].sum(axis=1),
        "return": padded["reward"].astype(np.float64).sum(axis=1),
        "milestone_at_best": padded["milestone"][np.arange(sizes["E"]), best] if sizes["T"] else best,
        "initial_state": begun,
        "mask": mask,
        **padded,
    }
    for spec in EPISODES_ARRAYS:
        given = np.asarray(columns[spec.name])
        if given.shape != spec.shape(sizes):
            raise ValueError(f"{spec.name}: got {given.shape}, expected {spec.shape(sizes)}")
        arrays[spec.name][...] = given.astype(spec.dtype)
    complete(path, "episodes", EPISODES_VERSION, asdict(attrs), whole=whole)


def open_episodes(evaluation: Path, *, incomplete: bool = False) -> Episodes:
    """Opens the episodes of the evaluation folder at `evaluation`.

    Args:
        incomplete: also those of an evaluation that ended because the simulator crashed too often.

    Raises:
        ArtifactError: none there, not whole, of another schema version, or with an array missing or of another shape.
    """
    path = evaluation / EPISODES
    if evaluation.is_dir() and not path.exists():
        raise ArtifactError(
            f"{evaluation} has no {EPISODES}: it is no evaluation, or one of an older tgrpo; {remedy('eval')}"
        )
    episodes = Episodes(evaluation, *open_checked(path, "episodes", EPISODES_VERSION, EPISODES_ARRAYS, cut_short=True))
    if not (episodes.complete or incomplete):
        raise ArtifactError(
            f"{evaluation} is incomplete: the simulator crashed in {int(episodes['crashed'][:].sum())} of its first "
            f"{len(episodes)} episodes; see what `tgrpo doctor` says, and {remedy('eval')}"
        )
    return episodes
