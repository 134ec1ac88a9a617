"""Group-relative advantages, one pure function per equation of TGRPO (arXiv:2506.08440, section 3). NumPy only.

G is the trajectory of a group (the paper's i, of n or M), T the time step (its t; here one policy decision).

Two values count as equal when they differ by no more than float rounding: a standard deviation of at most
`EQUAL` times the largest magnitude among the values compared is taken for zero. An exact comparison with zero would not
do: three rewards of 0.1 have a mean of 0.10000000000000002, and dividing by a deviation of 1e-17 turns that noise into
advantages of size 1.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

EQUAL = 1e-6  # relative; float32 rewards carry 6e-8, and milestones that mean something differ by far more


def group_advantage(returns: ArrayLike) -> NDArray[np.float64]:
    """A_i = (R_i - mean(R)) / std(R)    (eq. 5, GRPO)

    The paper leaves open whether std divides by n or n - 1; this is n - 1, as in its own eq. 6 and 7.

    Args:
        returns: (G,) the total reward of each trajectory, any unit.

    Returns:
        (G,) mean 0 and sample standard deviation 1; all zero when G < 2 or when all returns are equal.
    """
    values = np.asarray(returns, np.float64)
    return _standardise(values, np.ones(values.shape, np.bool_))


def step_advantage(reward: ArrayLike, mask: ArrayLike) -> NDArray[np.float64]:
    """S_it = (R_it - 1/n sum_i R_it) / sqrt(1/(n-1) sum_i (R_it - 1/n sum_i R_it)^2)    (eq. 6)

    The paper's trajectories all end together. Where lengths differ, step t compares the n_t trajectories that are still
    valid at t.

    Args:
        reward: (G, T) reward of the state after decision t; what it holds outside the mask is never read.
        mask: (G, T) true where the trajectory takes part in the comparison at t.

    Returns:
        (G, T), zero outside the mask and wherever fewer than two trajectories are valid or all their rewards are equal.
    """
    return _standardise(np.asarray(reward, np.float64), np.asarray(mask, np.bool_))


def trajectory_return(reward: ArrayLike, mask: ArrayLike) -> NDArray[np.float64]:
    """R_i = sum_t R_it over the valid steps of trajectory i    (of eq. 7). (G, T), (G, T) -> (G,)."""
    return np.where(np.asarray(mask, np.bool_), np.asarray(reward, np.float64), 0.0).sum(axis=1)


def trajectory_advantage(returns: ArrayLike) -> NDArray[np.float64]:
    """T_i = (R_i - 1/n sum_i R_i) / sqrt(1/(n-1) sum_i (R_i - 1/n sum_i R_i)^2)    (eq. 7), (G,) -> (G,).

    Eq. 5 with its std made explicit, so it shares every property of `group_advantage`.
    """
    return group_advantage(returns)


def fuse(step: NDArray[np.float64], trajectory: NDArray[np.float64], a1: float, a2: float) -> NDArray[np.float64]:
    """Adv_it = a1 S_it + a2 T_i    (eq. 8)

    Args:
        step: (G, T) S of eq. 6.
        trajectory: (G,) T of eq. 7.
        a1, a2: the paper's weights, 0.3 and 0.7 for most of its tasks.

    Returns:
        (G, T). Padded steps get a2 T_i as well; it is the mask that keeps them out of the loss.
    """
    return a1 * step + a2 * trajectory[:, None]


def hold_success(
    reward: ArrayLike, mask: ArrayLike, success: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Lets a trajectory that ended in success keep its last reward until the longest trajectory of its group ends.

    Not in the paper, whose trajectories end together. When each runs to its own end, a sum over fewer steps would make
    an early success worth less than a late one; held, finishing earlier is never worse.

    Args:
        reward: (G, T); mask: (G, T), a prefix of true per trajectory; success: (G, T) the goal holds after decision t.

    Returns:
        reward (G, T) and mask (G, T) for the returns of eq. 7. The held steps are no decisions: compare steps by eq. 6, and
        train, on the original mask.
    """
    reward, mask = np.asarray(reward, np.float64), np.asarray(mask, np.bool_)
    length = mask.sum(axis=1)
    last = np.maximum(length - 1, 0)[:, None]
    step = np.arange(mask.shape[1])
    held = ended_in_success(mask, success)[:, None] & (step >= length[:, None]) & (step < length.max(initial=0))
    return np.where(held, np.take_along_axis(reward, last, axis=1), reward), mask | held


def ended_in_success(mask: ArrayLike, success: ArrayLike) -> NDArray[np.bool_]:
    """(G,) the goal holds after a trajectory's last decision: the 0/1 outcome of GRPO. (G, T), (G, T); see `hold_success`."""
    mask, success = np.asarray(mask, np.bool_), np.asarray(success, np.bool_)
    last = np.maximum(mask.sum(axis=1) - 1, 0)[:, None]
    return np.take_along_axis(success & mask, last, axis=1)[:, 0]


def _standardise(values: NDArray[np.float64], mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    """(x - mean) / std over axis 0 among the masked values; zero where these are equal or fewer than two."""
    n = mask.sum(axis=0)
    x = np.where(mask, values, 0.0)
    mean = x.sum(axis=0) / np.maximum(n, 1)
    deviation = np.where(mask, x - mean, 0.0)
    std = np.sqrt((deviation**2).sum(axis=0) / np.maximum(n - 1, 1))
    differs = std > EQUAL * np.abs(x).max(axis=0, initial=0.0)
    return np.where(differs, deviation / np.where(differs, std, 1.0), 0.0)
