"""What a comparison is made of: arrays that may be there, and one check for each quantity."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stages.errors import MismatchError

EXACT = 0.0
ACTION = 1e-12  # float64 arithmetic on equal tokens
PIXEL = 1e-6  # normalised pixels and crops in [0, 1], float32
LANCZOS = 2e-4  # of 255, before rounding; another C library's sine moves it by half of that, and no pixel
LOGIT = 1e-4  # float32 against float64 differs by 3e-5 on OpenVLA's classes
LOG_PROB = 5e-5  # nats
STATE = 1e-4  # activations, relative to the largest where that is above 1
GRADIENT = 3e-4  # relative: of each norm to itself, of each entry to the array's largest

Pair = tuple[ArrayLike, ArrayLike]  # what was computed here, what the fixture holds


@dataclass(frozen=True)
class Check:
    """One quantity, all its arrays together."""

    name: str
    difference: float  # the largest; inf where a number stands on one side alone
    limit: float

    @property
    def ok(self) -> bool:
        return self.difference <= self.limit

    def line(self) -> str:
        verdict = "ok" if self.ok else "OVER"
        return f"{self.name:<46} largest difference {self.difference:<9.3g} limit {self.limit:<7g} {verdict}"


@dataclass
class Fixture:
    """Named arrays of one file, and which were asked for in vain."""

    arrays: Mapping[str, NDArray[Any]]
    absent: set[str] = field(default_factory=set)

    def find(self, *names: str) -> list[NDArray[Any]] | None:
        """The arrays of these names, or None when one of them is not there, which is then noted."""
        missing = set(names) - self.arrays.keys()
        self.absent |= missing
        return None if missing else [self.arrays[name] for name in names]

    def numbered(self, pattern: str) -> list[int]:
        """0, 1, ... for as long as `pattern` with the number in place of {} is there."""
        found: list[int] = []
        while pattern.format(len(found)) in self.arrays:
            found.append(len(found))
        return found


def close(name: str, pairs: Iterable[Pair], limit: float, *, scaled: bool = False) -> Check:
    """The largest difference over pairs of arrays; `scaled` divides each by its largest value where that is above 1.

    NaN in the fixture marks what is not defined there, and is left out.

    Raises:
        MismatchError: shapes that differ.
    """
    worst = 0.0
    for got, want in pairs:
        ours, theirs = _same_shape(name, got, want)
        known = ~np.isnan(theirs)
        equal = ours == theirs  # infinities too, whose difference is not a number
        apart = np.where(equal, 0.0, np.abs(ours - np.where(equal, ours, theirs)))[known]
        apart = np.where(np.isnan(apart), np.inf, apart)
        if scaled and known.any():
            apart = apart / max(1.0, float(np.abs(theirs[known]).max()))
        worst = max(worst, float(apart.max(initial=0.0)))
    return Check(name, worst, limit)


def same(name: str, pairs: Iterable[Pair]) -> Check:
    """Integers, levels of pixels, or bytes that must be equal."""
    return close(name, pairs, EXACT)


def relative(name: str, pairs: Iterable[Pair], limit: float) -> Check:
    """Differences relative to what the fixture holds, entry by entry; where that is 0, so must ours be.

    Raises:
        MismatchError: shapes that differ.
    """
    worst = 0.0
    for got, want in pairs:
        ours, theirs = _same_shape(name, got, want)
        apart = np.abs(ours - theirs)
        ratio = np.divide(apart, np.abs(theirs), out=np.where(apart == 0, 0.0, np.inf), where=theirs != 0)
        worst = max(worst, float(np.where(np.isnan(ratio), np.inf, ratio).max(initial=0.0)))
    return Check(name, worst, limit)


def _same_shape(name: str, got: ArrayLike, want: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    ours, theirs = np.asarray(got, dtype=np.float64), np.asarray(want, dtype=np.float64)
    if ours.shape != theirs.shape:
        raise MismatchError(
            f"{name}: this checkpoint gives {ours.shape}, the fixture holds {theirs.shape}; "
            "expected a fixture made from this very checkpoint"
        )
    return ours, theirs
