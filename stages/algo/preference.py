"""GRAPE's trajectory-wise preference optimisation (TPO; Zhang et al., arXiv:2411.19309) on groups of trajectories. NumPy only.

M is a trajectory of an update, P a ranked pair of two trajectories of one group. A trajectory's log-ratio is
log pi(zeta) - log pi_ref(zeta), summed over all tokens of all its decisions, in nats; what the simulator did is the same
under both policies and cancels.

Where this departs from GRAPE. It ranks by a score of three parts (the policy's own likelihood of the trajectory, an
external cost over stages that a vision-language model proposes, success) and pairs the best few with the worst few over
trajectories of one task. Here the group's returns rank: the multi-milestone reward takes the cost's place, with success
the highest reward; every pair of one group (one initial state) with different returns counts.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stages.algo.advantages import EQUAL


@dataclass(frozen=True)
class Preference:
    """The loss of ranked pairs, and how it pulls at each trajectory."""

    loss: float
    coefficient: NDArray[np.float64]  # (M,) d loss / d log pi(zeta), negative: should become likelier
    accuracy: float  # share of pairs whose better trajectory has the higher log-ratio; a tie counts half


def ranked_pairs(returns: ArrayLike, group: ArrayLike) -> NDArray[np.int64]:
    """All pairs (better, worse) of trajectories of one group whose returns differ by more than rounding (`EQUAL`).

    Args:
        returns: (M,) any unit.
        group: (M,) which group a trajectory belongs to.

    Returns:
        (P, 2) indices of trajectories, by the better one, then the worse one.
    """
    values, of = np.asarray(returns, np.float64), np.asarray(group)
    difference = values[:, None] - values[None, :]
    size = np.maximum(np.abs(values)[:, None], np.abs(values)[None, :])
    return np.argwhere((difference > EQUAL * size) & (of[:, None] == of[None, :]))


def preference(log_ratio: ArrayLike, pairs: NDArray[np.int64], beta: float) -> Preference:
    """L = -1/P sum_(w,l) log sigma(beta (log pi(w)/pi_ref(w) - log pi(l)/pi_ref(l)))    (GRAPE's TPO loss)

    With m the margin, the argument of sigma, its derivative by log pi is closed:

        dL / d log pi(zeta) = -beta/P ( sum over pairs that zeta wins of sigma(-m) - sum over those it loses of sigma(-m) )

    so the gradient by the weights is sum_zeta coefficient(zeta) d log pi(zeta), which can be added up decision by
    decision once every trajectory's log-ratio is known: trajectories need not fit into one pass.

    Args:
        log_ratio: (M,) log pi(zeta) - log pi_ref(zeta).
        pairs: (P, 2) of `ranked_pairs`, at least one.
        beta: how much a nat of log-ratio counts.
    """
    x = np.asarray(log_ratio, np.float64)
    better, worse = pairs.T
    margin = beta * (x[better] - x[worse])
    pull = beta * np.exp(-np.logaddexp(0.0, margin)) / len(pairs)  # beta sigma(-m) / P
    coefficient = np.zeros_like(x)
    np.add.at(coefficient, better, -pull)
    np.add.at(coefficient, worse, pull)
    return Preference(
        loss=float(np.logaddexp(0.0, -margin).mean()),
        coefficient=coefficient,
        accuracy=float(((margin > 0) + 0.5 * (margin == 0)).mean()),
    )
