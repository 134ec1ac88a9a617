"""The published normalisation: the 1st and 99th percentile of the training data map to -1 and 1."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stages.errors import ArtifactError


@dataclass(frozen=True)
class Bounds:
    """q01 and q99 of each dimension; where `mask` is false a dimension passes unchanged."""

    low: NDArray[np.float64]  # (D,)
    high: NDArray[np.float64]  # (D,)
    mask: NDArray[np.bool_]  # (D,)

    @classmethod
    def from_stats(cls, stats: Mapping[str, Any], dim: int) -> "Bounds":
        """From one entry of `norm_stats`: q01, q99 and, where there is one, mask.

        Raises:
            ArtifactError: missing or of another length than `dim`.
        """
        try:
            low, high = np.asarray(stats["q01"], dtype=np.float64), np.asarray(stats["q99"], dtype=np.float64)
        except KeyError as error:
            raise ArtifactError(
                f"normalisation statistics have no {error}; expected q01 and q99 of {dim} entries"
            ) from None
        mask = np.asarray(stats.get("mask", np.ones(dim)), dtype=bool)
        if not low.shape == high.shape == mask.shape == (dim,):
            raise ArtifactError(
                f"normalisation statistics q01 {low.shape}, q99 {high.shape}, mask {mask.shape}; expected ({dim},) each"
            )
        return cls(low, high, mask)

    def normalize(self, value: ArrayLike) -> NDArray[np.float64]:
        """(..., D) -> (..., D), clipped to [-1, 1] where masked; a dimension that never varied becomes 0."""
        value = np.asarray(value, dtype=np.float64)
        width = self.high - self.low
        scaled = np.clip(2.0 * (value - self.low) / np.where(width == 0, 1.0, width) - 1.0, -1.0, 1.0)
        return np.where(self.mask, np.where(width == 0, 0.0, scaled), value)

    def unnormalize(self, value: ArrayLike) -> NDArray[np.float64]:
        """(..., D) -> (..., D): 0.5 (x + 1) (q99 - q01) + q01 where masked."""
        value = np.asarray(value, dtype=np.float64)
        return np.where(self.mask, 0.5 * (value + 1.0) * (self.high - self.low) + self.low, value)


def suite_stats(norm_stats: Mapping[str, Any] | None, suite: str | None) -> Mapping[str, Any]:
    """The statistics of one suite, under its name or `<suite>_no_noops`; the only entry when `suite` is None.

    Raises:
        ArtifactError: no such entry, or several and no suite named.
    """
    entries = norm_stats or {}
    candidates = [suite, f"{suite}_no_noops"] if suite else list(entries)
    found = [entries[key] for key in candidates if key in entries]
    if not found or (suite is None and len(found) > 1):
        wanted = f"{suite} or {suite}_no_noops" if suite else "exactly one entry, or a suite to be named"
        raise ArtifactError(
            f"the checkpoint's norm_stats hold {list(entries) or 'nothing'}; expected {wanted}; "
            "name a task of a suite that it was trained on, or a checkpoint for this one"
        )
    return found[0]
