"""The step-level comparison within a stage of the task rather than within a time step. NumPy only.

The paper (arXiv:2506.08440, section 3.2): "grouping can be done by task or trajectory stage"; it takes the task and leaves
the stage open. G is the trajectory of a group, T the time step (one policy decision).
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stages.algo.advantages import group_advantage

START = 0  # the milestone before the first decision, where reward programs start counting


def taken_in(milestone: ArrayLike) -> NDArray[np.int64]:
    """The milestone of the state in which each decision was taken, from (G, T) the one reached after it. (G, T)."""
    reached = np.asarray(milestone, np.int64)
    before = np.full(reached.shape, START)
    before[:, 1:] = reached[:, :-1]
    return before


def milestone_advantage(reward: ArrayLike, mask: ArrayLike, milestone: ArrayLike) -> NDArray[np.float64]:
    """S_it = (R_it - mean_m R) / std_m R    (eq. 6 with another set of peers)

    m is the milestone in which decision t of trajectory i was taken; mean_m and std_m (n - 1) run over the decisions, of
    any trajectory and any time, that were taken in m.

    Rewards are constant within a milestone, so comparing states of one milestone would always give zero. What is
    compared is the reward *after* decisions that started from the same milestone: it is larger when the decision led on
    to the next one, smaller when it fell back, and that is what the decision did. Eq. 6 credits a trajectory at t for
    being ahead, whichever earlier decision brought it there; here the baseline depends on the state alone, so only
    the change counts.

    Args:
        reward: (G, T) of the state after decision t; mask: (G, T) decisions taken, a prefix of true per trajectory;
            milestone: (G, T) sub-goal reached after decision t, whole numbers.

    Returns:
        (G, T), zero outside the mask and in a milestone that every decision taken in it left with one and the same reward.
    """
    rewards, valid, before = np.asarray(reward, np.float64), np.asarray(mask, np.bool_), taken_in(milestone)
    advantage = np.zeros(rewards.shape)
    for m in np.unique(before[valid]):
        peers = valid & (before == m)
        advantage[peers] = group_advantage(rewards[peers])
    return advantage
