"""Generalised advantage estimation of PPO's advantages (Schulman et al., arXiv:1506.02438, eq. 11-16). NumPy only."""

import numpy as np
from numpy.typing import ArrayLike, NDArray


def gae(reward: ArrayLike, value: ArrayLike, last_value: float, gamma: float, lam: float) -> NDArray[np.float64]:
    """A_t = sum_l (gamma lambda)^l delta_{t+l},  delta_t = r_t + gamma V_{t+1} - V_t    (eq. 16)

    Args:
        reward: (T,) r_t of one trajectory, any unit.
        value: (T,) V_t of the state that decision t saw, in the same unit.
        last_value: V_T of the state after the last decision: 0 where the episode is over, a critic's value where it was
            only cut off.
        gamma: discount of rewards, 0..1.
        lam: lambda, 0 (one-step errors: little variance, the critic's bias) to 1 (discounted returns less the value).

    Returns:
        (T,). A_t + V_t is the lambda-return, which the critic is fitted to.
    """
    r, v = np.asarray(reward, np.float64), np.asarray(value, np.float64)
    delta = r + gamma * np.append(v[1:], last_value) - v
    advantage = np.zeros_like(delta)
    later = 0.0
    for t in range(len(delta) - 1, -1, -1):
        later = delta[t] + gamma * lam * later
        advantage[t] = later
    return advantage


def normalised(advantage: NDArray[np.float64]) -> NDArray[np.float64]:
    """(A - mean) / std over all decisions of an update, (B,) -> (B,); zero where all are equal.

    Not in PPO's paper but in its authors' code and those that follow it: the step then does not depend on the reward's unit.
    """
    deviation = advantage - advantage.mean()
    std = deviation.std()
    return deviation / std if std > 1e-6 * np.abs(advantage).max(initial=0.0) else np.zeros_like(deviation)


def explained_variance(value: NDArray[np.float64], target: NDArray[np.float64]) -> float:
    """1 - Var(target - value) / Var(target): 1 is a perfect critic, 0 no better than a constant. NaN for equal targets."""
    spread = float(target.var())
    return float("nan") if spread == 0 else 1.0 - float((target - value).var()) / spread
