"""What section A.2 of the paper says about its weights, computed again from its own table 3 (figure 6)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stages.paper.numbers import A2_CLAIMS

Pair = tuple[float, float]  # a1, a2


@dataclass(frozen=True)
class Pca:
    """Principal components of pairs that were standardised or not; components are rows, in order of variance."""

    scores: NDArray[np.float64]  # (N, 2)
    components: NDArray[np.float64]  # (2, 2) unit vectors over (a1, a2)
    explained: NDArray[np.float64]  # (2,) shares of the variance, sum 1


def pair_statistics(pairs: Sequence[Pair]) -> dict[str, float]:
    """Means, sample standard deviations (n - 1) and Pearson's r, by the names of `A2_CLAIMS`.

    Raises:
        ValueError: fewer than two pairs.
    """
    if len(pairs) < 2:
        raise ValueError(f"{len(pairs)} pairs: expected at least two")
    a = np.asarray(pairs, np.float64)
    values = [value for column in a.T for value in (np.mean(column), np.std(column, ddof=1))]
    return dict(zip(A2_CLAIMS, map(float, [*values, np.asarray(np.corrcoef(a.T))[0, 1]]), strict=True))


def pca(pairs: Sequence[Pair]) -> Pca:
    """PCA of the pairs as they are (the paper names no scaling), by the SVD of the centred pairs.

    The sign of a component is such that its largest coefficient is positive.
    """
    a = np.asarray(pairs, np.float64)
    _, singular, components = np.linalg.svd(a - a.mean(axis=0), full_matrices=False)
    largest = np.take_along_axis(components, np.abs(components).argmax(axis=1)[:, None], axis=1)
    components = components * np.sign(largest)
    variance = singular**2
    return Pca((a - a.mean(axis=0)) @ components.T, components, variance / variance.sum())


def dendrogram_links(pairs: Sequence[Pair]) -> NDArray[np.float64]:
    """(N - 1, 4) the merges of Ward's agglomerative clustering of the pairs, as scipy's `linkage` gives them."""
    from scipy.cluster.hierarchy import linkage

    links: NDArray[np.float64] = linkage(np.asarray(pairs, np.float64), method="ward")
    return links


def clusters(pairs: Sequence[Pair], count: int) -> list[tuple[Pair, ...]]:
    """The distinct pairs of each of `count` clusters, cut from Ward's tree; sorted, the smallest pair first."""
    from scipy.cluster.hierarchy import fcluster

    labels = fcluster(dendrogram_links(pairs), count, criterion="maxclust")
    found = (sorted({pair for pair, own in zip(pairs, labels, strict=True) if own == label}) for label in set(labels))
    return sorted(tuple(cluster) for cluster in found)


def rounds_to(value: float, claim: float, digits: int = 2) -> bool:
    """Whether a value, rounded to the digits printed, is the claim; at a tie both neighbours are."""
    return abs(value - claim) <= 0.5 * 10**-digits + 1e-9
