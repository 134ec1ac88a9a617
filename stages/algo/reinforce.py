"""What REINFORCE credits a decision with: the reward that follows it (Williams, Machine Learning 8, 1992). NumPy only.

G is the trajectory of a group, T the time step (one policy decision).
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stages.algo.advantages import group_advantage


def reward_to_go(reward: ArrayLike, mask: ArrayLike, gamma: float) -> NDArray[np.float64]:
    """G_it = R_it + gamma G_i,t+1, the discounted reward from decision t on.

    Args:
        reward: (G, T) reward of the state after decision t.
        mask: (G, T), a prefix of true per trajectory; what lies outside it is never read.
        gamma: 0..1, the discount per decision; 1 sums, 0 leaves R_it alone.

    Returns:
        (G, T), in the unit of the reward; zero outside the mask.
    """
    valid = np.asarray(mask, np.bool_)
    to_go = np.where(valid, np.asarray(reward, np.float64), 0.0)
    for t in reversed(range(to_go.shape[1] - 1)):
        to_go[:, t] += gamma * to_go[:, t + 1]
    return to_go


def reinforce_advantage(to_go: ArrayLike, mask: ArrayLike) -> NDArray[np.float64]:
    """Adv_it = (G_it - mean(G)) / std(G), mean and std (n - 1) over all decisions of the group.

    Williams weighs grad log pi by (r - b): r the reward of the whole episode (his section 5), b any baseline that does not
    depend on the action. Here r is the reward that follows the decision, discounted, which has the same expected
    gradient without discount and less noise; b is the mean of the group, and the deviation fixes the scale, so that one
    learning rate suits every reward. With few trajectories that mean depends slightly on the decision itself.

    Args:
        to_go: (G, T) of `reward_to_go`; mask: (G, T) decisions taken.

    Returns:
        (G, T), zero outside the mask and when all G_it are equal.
    """
    valid = np.asarray(mask, np.bool_)
    advantage = np.zeros(valid.shape)
    advantage[valid] = group_advantage(np.asarray(to_go, np.float64)[valid])
    return advantage
