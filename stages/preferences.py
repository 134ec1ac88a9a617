"""GRAPE's pairs over the decisions of an update, see `algo.preference` for the loss and where it departs from its paper.

The trajectories of a pair do not fit into one pass, and the loss is no sum over decisions. Its gradient is: a first pass
without gradient gives every trajectory's log-ratio and so the derivative of the loss by each trajectory's log-prob; that
number, as an advantage of all its decisions under `log_prob` per action, gives the exact gradient in a second pass, in any
parts. The reference is the base checkpoint, the adapter switched off. GRAPE iterates: sample, rank, optimise, sample again
with what came out; that is the loop of `tgrpo train`.
"""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from stages.algo.preference import Preference, preference, ranked_pairs
from stages.decisions import Decisions


class Preferences:
    """The ranked pairs of an update's groups."""

    def __init__(self, decisions: Decisions, ref_log_prob: NDArray[np.float32], beta: float) -> None:
        """`ref_log_prob` (B,): of each decision's action under the reference, summed over its tokens."""
        self.decisions = replace(decisions, weight=np.ones(len(decisions), np.float32))
        self.last: Preference  # of the last `weigh`
        self._ref_log_prob = ref_log_prob
        self._beta = beta
        self._found: list[tuple[float, int]] = []  # accuracy and number of pairs of every `weigh`

    def weigh(self, rows: NDArray[np.int64], log_prob: NDArray[np.float32]) -> Decisions:
        """The decisions with the advantages that make `policy_loss`, averaged over `rows`, pull as the pairs among them do.

        Args:
            rows: all decisions of whole groups.
            log_prob: (len(rows),) of their actions under the present policy.
        """
        d = self.decisions
        _, first, of_row = np.unique(d.trajectory[rows], return_index=True, return_inverse=True)
        log_ratio = np.bincount(of_row, weights=log_prob.astype(np.float64) - self._ref_log_prob[rows])
        pairs = ranked_pairs(d.returns[rows][first], d.group[rows][first])
        self.last = preference(log_ratio, pairs, self._beta)
        self._found.append((self.last.accuracy, len(pairs)))
        advantage = np.zeros(len(d), np.float32)
        # policy_loss is minus a mean over the rows, and the gradient of the pairs is a sum.
        advantage[rows] = -len(rows) * self.last.coefficient[of_row]
        return replace(d, advantage=advantage)

    @property
    def accuracy(self) -> float:
        """Share of pairs, over all passes, whose better trajectory had gained more over the reference."""
        accuracies, numbers = zip(*self._found, strict=True)
        return float(np.average(accuracies, weights=numbers))
