"""The advantages of one group, as an artifact of their own, so that a group can be weighed in many ways."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stages.store.artifacts import atomic_directory
from stages.store.provenance import from_record
from stages.store.schema import ADVANTAGES_ARRAYS, ADVANTAGES_VERSION, AdvantagesAttrs
from stages.store.zarr_files import complete, create_arrays, open_checked


@dataclass(frozen=True)
class Advantages:
    """A whole advantages artifact, in memory. Made by `open_advantages`."""

    path: Path
    attrs: AdvantagesAttrs
    step_advantage: NDArray[np.float64]  # (G, T) S of eq. 6
    trajectory_advantage: NDArray[np.float64]  # (G,) T of eq. 7
    advantage: NDArray[np.float64]  # (G, T) eq. 8, or what `attrs.algo` has in its place
    returns: NDArray[np.float64]  # (G,)
    success: NDArray[np.bool_]  # (G,) ended in success
    mask: NDArray[np.bool_]  # (G, T) decisions to train on


def write_advantages(
    path: Path,
    attrs: AdvantagesAttrs,
    *,
    step_advantage: ArrayLike,
    trajectory_advantage: ArrayLike,
    advantage: ArrayLike,
    returns: ArrayLike,
    success: ArrayLike,
    mask: ArrayLike,
    overwrite: bool = False,
) -> None:
    """Writes an advantages artifact, at once and whole. Shapes as in `Advantages`.

    Raises:
        ArtifactError: `path` exists and `overwrite` is false.
        TgrpoError: the disk is full.
        ValueError: shapes that do not belong together, or an advantage that is not finite.
    """
    arrays: Mapping[str, NDArray[Any]] = {
        "step_advantage": np.asarray(step_advantage),
        "trajectory_advantage": np.asarray(trajectory_advantage),
        "advantage": np.asarray(advantage),
        "return": np.asarray(returns),
        "success": np.asarray(success),
        "mask": np.asarray(mask),
    }
    trajectories, decisions = arrays["mask"].shape
    sizes = {"G": trajectories, "T": decisions}
    for spec in ADVANTAGES_ARRAYS:
        given = arrays[spec.name]
        if given.shape != spec.shape(sizes) or not np.isfinite(given).all():
            raise ValueError(f"{spec.name}: got {given.shape}, expected {spec.shape(sizes)}, all finite")
    with atomic_directory(path, overwrite) as partial:
        created = create_arrays(partial, ADVANTAGES_ARRAYS, sizes)
        for name, array in created.items():
            array[...] = arrays[name].astype(array.dtype)
        complete(partial, "advantages", ADVANTAGES_VERSION, asdict(attrs))


def open_advantages(path: Path) -> Advantages:
    """Reads an advantages artifact.

    Raises:
        ArtifactError: as `groups.open_group`.
    """
    group, record, _ = open_checked(path, "advantages", ADVANTAGES_VERSION, ADVANTAGES_ARRAYS)
    arrays: dict[str, Any] = {spec.name: group[spec.name][:] for spec in ADVANTAGES_ARRAYS}  # type: ignore[index]
    arrays["returns"] = arrays.pop("return")
    return Advantages(path, from_record(AdvantagesAttrs, record, path, "advantages"), **arrays)
