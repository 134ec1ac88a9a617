"""Weights of S and T from the group itself, in place of the hand-tuned a1 and a2 of eq. 8. NumPy only.

Let c_it be what decision t of trajectory i contributed to its return: how much the expected return, in the group's
standard deviations, changed when that decision was taken. It is the advantage that S_it and T_i both stand for, and

    T_i = sum_t c_it    with contributions that are uncorrelated (the changes of an expectation are)

- T_i holds c_it as its signal and the contributions of all other decisions as noise. The slope of the best linear
  prediction of c_it from T_i alone, signal over variance, is cov(T, c) / var(T) = 1/n for a mean of n decisions.
- S_it compares rewards at t, of which a part is inherited: who was ahead stays ahead. What is new, the innovation
  I_it = S_it - rho S_i,t-1 with rho the lag-one autocorrelation of S, is the doing of decision t, so cov(S, c) =
  cov(I, c) = cov(I, T), the second because I_it is uncorrelated with all other contributions, as far as rho catches
  what is inherited. The slope is cov(I, T) / var(S): large when a gain of one step shows in the return, small when S
  lasts (rho near 1), zero when steps that look good do not lead to good returns.

a1 and a2 are in the ratio of the two slopes. Both slopes ignore that S and T overlap. The joint prediction would not, but
it gives T a weight of zero or less in most groups, because it takes S for all that a decision does; the effects that
no reward shows until much later are in T alone.
"""

import numpy as np
from numpy.typing import NDArray


def auto_weights(
    step: NDArray[np.float64], trajectory: NDArray[np.float64], mask: NDArray[np.bool_]
) -> tuple[float, float]:
    """a1 : a2 = max(0, cov(I, T)) / var(S) : 1/n, with a1 + a2 = 1; see above.

    The moments are means over the decisions of the group, about zero, which is the mean that S and T are built to have.

    Args:
        step: (G, T) S of eq. 6, or of `milestone_advantage`.
        trajectory: (G,) T of eq. 7.
        mask: (G, T) decisions taken, a prefix of true per trajectory.

    Returns:
        a1, a2 >= 0, the same for rewards of any unit and for trajectories in any order; 0, 1 where S is zero throughout.
    """
    s = np.where(mask, step, 0.0)
    variance = (s**2).sum()
    if variance == 0:
        return 0.0, 1.0
    earlier = np.zeros_like(s)
    earlier[:, 1:] = np.where(mask[:, 1:], s[:, :-1], 0.0)
    inherited = (earlier**2).sum()
    rho = (s * earlier).sum() / inherited if inherited else 0.0
    slope_s = max(0.0, float(((s - rho * earlier) * trajectory[:, None]).sum() / variance))
    slope_t = 1 / float(mask.sum(axis=1).mean())
    return slope_s / (slope_s + slope_t), slope_t / (slope_s + slope_t)
