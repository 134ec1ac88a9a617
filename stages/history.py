"""A run's history: one line per iteration, in numbers that depend on params and seed alone, kept with every checkpoint.

A cell that does not apply, because nothing was learnt in that iteration or the algorithm has no such thing, is NaN, and
empty in the file.
"""

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stages.algo.advantages import EQUAL
from stages.store.advantages import Advantages
from stages.store.groups import Group

HISTORY = "history.csv"
WHOLE = ("iteration", "groups", "groups_used", "updates")  # columns of whole numbers

UPDATE_COLUMNS = {
    "loss": "mean over the optimiser updates",
    "kl": "to the reference policy, nats a token, as `update.kl` estimates it for the loss",
    "approx_kl": "from the sampling policy to the one being trained, nats a token (k3)",
    "kl_end": "to the reference policy after the update, nats a token, exact over the action tokens",
    "entropy_end": "of the policy after the update, nats a token",
    "ratio_mean": "pi / pi_old over all passes, per token or per action as `update.ratio` says",
    "ratio_p05": "its 5% quantile",
    "ratio_p50": "its median",
    "ratio_p95": "its 95% quantile",
    "ratio_max": "its largest",
    "clip_fraction": "ratios beyond the clip; 0 where none is clipped",
    "grad_norm": "mean norm of the policy's gradient before it is limited",
    "updates": "optimiser updates",
    "value_loss": "of the critic (ppo), in squared deviations of the returns",
    "explained_variance": "share of the returns' variance that the critic foresaw before the update (ppo)",
    "preference_accuracy": "ranked pairs whose better trajectory gained more over the reference (grape)",
}
ROLLOUT_COLUMNS = {
    "iteration": "counted from the base checkpoint",
    "success": "share of the sampled trajectories",
    "return": "mean total reward of a trajectory",
    "decisions": "mean length of a trajectory",
    "milestone": "mean over trajectories of the sub-goal at which the reward was highest",
    "log_prob": "mean over the sampled action tokens, under the policy that sampled them, nats",
    "entropy": "mean over the same tokens' distributions, nats",
    "groups": "sampled",
    "groups_used": "learnt from",
    "zero_variance": "share of groups whose trajectories all have the same return",
}
COLUMNS = {**ROLLOUT_COLUMNS, **UPDATE_COLUMNS}


def history_row(
    iteration: int, pairs: Sequence[tuple[Group, Advantages]], update: Mapping[str, float]
) -> dict[str, float]:
    """One line: what the rollouts showed (means over trajectories) and what the update did, by `COLUMNS`.

    Args:
        update: of `Learner.update`; empty when nothing was learnt.
    """
    groups = [group for group, _ in pairs]
    masks = [group["mask"][:] for group in groups]
    trajectories = sum(group.trajectories for group in groups)

    def per_group(name: str) -> float:
        return float(np.mean([group[name][:][mask].mean() for group, mask in zip(groups, masks, strict=True)]))

    return {
        "iteration": iteration,
        "success": sum(group.summary.successes for group in groups) / trajectories,
        "return": float(np.mean([group.summary.mean_return for group in groups])),
        "decisions": float(np.mean([group.summary.mean_length for group in groups])),
        "milestone": float(np.mean(np.concatenate([furthest_milestone(group) for group in groups]))),
        "log_prob": per_group("log_prob"),
        "entropy": per_group("entropy"),
        "groups": len(groups),
        "groups_used": sum(advantages.attrs.used for _, advantages in pairs),
        "zero_variance": float(np.mean([_all_equal(advantages.returns) for _, advantages in pairs])),
        **{name: update.get(name, 0 if name in WHOLE else math.nan) for name in UPDATE_COLUMNS},
    }


def furthest_milestone(group: Group) -> NDArray[np.int64]:
    """(G,) the milestone at which each trajectory's reward was highest, the first of them.

    By the reward and not by the number, because numbers need not follow progress: the built-in program counts `dropped`
    after `placed`.
    """
    reward = np.where(group["mask"][:], group["reward"][:], -np.inf)
    best = reward.argmax(axis=1)
    return group["milestone"][:][np.arange(group.trajectories), best].astype(np.int64)


def write_history(path: Path, history: Sequence[Mapping[str, float]]) -> None:
    """Writes one line per iteration as CSV, numbers in full precision, NaN as nothing."""
    names = list(dict.fromkeys(name for row in history for name in row))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, names, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows({name: "" if math.isnan(value) else value for name, value in row.items()} for row in history)


def read_history(checkpoint: Path) -> list[dict[str, float]]:
    """The history that a checkpoint carries; empty for a base."""
    if not (checkpoint / HISTORY).exists():
        return []
    with (checkpoint / HISTORY).open(newline="") as file:
        return [{name: _number(name, value) for name, value in row.items()} for row in csv.DictReader(file)]


def _number(name: str, text: str) -> float:
    if not text:
        return math.nan
    return int(float(text)) if name in WHOLE else float(text)


def _all_equal(returns: NDArray[np.float64]) -> bool:
    return bool(np.ptp(returns) <= EQUAL * np.abs(returns).max(initial=0.0))
