"""What an update was like, gathered while it goes on."""

from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stages.algo.losses import LossStats
from stages.algo.objectives import ratio


class Tally:
    """Statistics of optimiser updates, and the ratios of every decision in every pass."""

    def __init__(self, per: Literal["token", "action"]) -> None:
        """`per`: what a ratio spans, see `objectives.ratio`."""
        self._per = per
        self._stats: list[LossStats] = []
        self._sizes: list[int] = []
        self._grad_norms: list[float] = []
        self._ratios: list[Tensor] = []

    @property
    def updates(self) -> int:
        return len(self._stats)

    @property
    def decisions(self) -> int:
        """Over all updates; a decision counts once a pass."""
        return sum(self._sizes)

    def add(self, stats: LossStats, grad_norm: float, log_prob: Tensor, old_log_prob: NDArray[np.float32]) -> None:
        """One update: over B decisions, whose log-probs (B, A) were these before it, and those when they were sampled."""
        self._stats.append(stats)
        self._sizes.append(len(log_prob))
        self._grad_norms.append(grad_norm)
        self._ratios.append(ratio(log_prob, torch.from_numpy(old_log_prob), self._per))

    def means(self) -> dict[str, float]:
        """By `history.UPDATE_COLUMNS`: means over decisions, quantiles of the ratios, the mean norm of the gradients."""
        ratios = torch.cat(self._ratios).numpy().astype(np.float64)
        low, middle, high = np.quantile(ratios, [0.05, 0.5, 0.95])
        found = vars(LossStats.pooled(self._stats, self._sizes))
        return {name: value for name, value in found.items() if not np.isnan(value)} | {
            "ratio_mean": float(ratios.mean()),
            "ratio_p05": float(low),
            "ratio_p50": float(middle),
            "ratio_p95": float(high),
            "ratio_max": float(ratios.max()),
            "grad_norm": float(np.mean(self._grad_norms)),
            "updates": self.updates,
        }
