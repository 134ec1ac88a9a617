"""Do several policies succeed equally often on the same start states? A permutation test."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

PERMUTATIONS = 9_999  # drawn where all are more; the standard error of p is then at most 0.005


def policies_differ(successes: ArrayLike, seed: int = 0) -> float:
    """p = P(the policies' totals vary at least as much when their names are exchanged within start states)

    If all policies were equally good, what they did on one start state could be given to any of them. All exchanges count, each
    state's independent of the others', or a drawn sample of them with what was observed among it. Episodes of one state stay
    together, so they need not be independent of each other. With one episode a state this is the permutation form of
    Cochran's Q (1950, Biometrika 37:256-266); with two policies it is the exact McNemar test.

    Args:
        successes: (states, policies), at least one state and two policies: how many of its episodes each policy succeeded in, of
            as many for all.
        seed: of the exchanges that are drawn.

    Returns:
        The p-value, above 0 and up to 1; 1 where the totals are equal.

    Raises:
        ValueError: no state, or one policy.
    """
    counts = np.asarray(successes, np.float64)
    if counts.ndim != 2 or counts.shape[0] < 1 or counts.shape[1] < 2:
        raise ValueError(f"policies_differ of shape {counts.shape}: expected (states, policies), at least (1, 2)")
    from scipy.stats import permutation_test

    # A state on which all did alike is the same however names are exchanged, and would only add to what is enumerated.
    telling = counts[(counts != counts[:, :1]).any(axis=1)]
    if len(telling) < 2:
        return 1.0  # of one state every exchange varies as much
    found = permutation_test(
        tuple(telling.T),
        _variation,
        permutation_type="samples",
        n_resamples=PERMUTATIONS,
        batch=500,
        alternative="greater",
        vectorized=True,
        rng=np.random.default_rng(seed),
    )
    return float(found.pvalue)


def _variation(*policies: NDArray[np.float64], axis: int = -1) -> NDArray[np.float64]:
    return np.var([policy.sum(axis=axis) for policy in policies], axis=0)
