"""Pictures of what artifacts hold: a run's curves, and a group's images, rewards, returns and advantages."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from stages.store.advantages import Advantages
    from stages.store.groups import Group

CURVES = (  # title, and the columns of the history that a panel shows
    ("success", {"success": "sampled trajectories"}),
    ("return", {"return": "mean"}),
    ("milestone", {"milestone": "mean of the furthest"}),
    ("log-prob of action tokens (nats)", {"log_prob": "as sampled"}),
    ("entropy (nats per token)", {"entropy": "as sampled", "entropy_end": "after the update"}),
    ("KL (nats per token)", {"kl_end": "to the reference", "approx_kl": "to the sampling policy"}),
    ("ratio", {"ratio_p05": "5%", "ratio_p50": "50%", "ratio_p95": "95%"}),
    ("shares", {"clip_fraction": "clipped ratios", "zero_variance": "groups without variance"}),
    ("gradient norm", {"grad_norm": "before clipping"}),
)
BLUES = ("tab:blue", "tab:cyan", "tab:gray")
FRAMES = 8


def _figure(**options: Any) -> "Figure":
    # The object interface needs no display and leaves matplotlib's global state alone.
    from matplotlib.figure import Figure

    return Figure(layout="constrained", **options)


def plot_history(
    out: Path,
    history: Sequence[Mapping[str, float]],
    validations: Sequence[Mapping[str, Any]],
    before: Sequence[Mapping[str, Any]],
    after: Sequence[Mapping[str, Any]],
    *,
    start: int,
    chosen: int,
) -> None:
    """Draws a run's history (one line per iteration), its validations, and the evaluations before and after.

    Rates have their 95% intervals. Columns that the history lacks, as one from an earlier version may, are left out.

    Args:
        history, validations: with `iteration`, on one axis.
        start: the iteration that the run started from.
        chosen: the iteration of the checkpoint that was evaluated after; a dashed line marks it.
    """
    from matplotlib.ticker import MaxNLocator

    figure = _figure(figsize=(13, 9.5))
    axes = figure.subplots(3, 3).ravel()
    iteration = [row["iteration"] for row in history]
    for axis, (title, columns) in zip(axes, CURVES, strict=True):
        for colour, (name, label) in zip(BLUES, columns.items(), strict=False):
            values = [row.get(name, np.nan) for row in history]
            axis.plot(iteration, values, color=colour, marker=".", label=label)
        axis.axvline(chosen, color="gray", linestyle="--", linewidth=0.8)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("iteration", fontsize=9)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.grid(alpha=0.3)
        if len(columns) > 1:
            axis.legend(fontsize=8)
    rates = axes[0]
    if validations:
        at = [v["iteration"] for v in validations]
        _rates(rates, at, validations, "tab:purple", "validation states", fmt="D:")
    for colour, *ends in zip(("tab:orange", "tab:green", "tab:red", "tab:brown"), before, after, strict=False):
        label = f"{ends[0]['starts']} states, temperature {ends[0]['temperature']:g}"
        _rates(rates, [start, chosen], ends, colour, label, fmt="o")
    rates.plot([], [], color="gray", linestyle="--", linewidth=0.8, label="checkpoint evaluated after")
    rates.set_ylim(-0.03, 1.03)
    rates.legend(fontsize=7)
    figure.savefig(out, dpi=110)


def _rates(
    axis: Any, at: Sequence[float], summaries: Sequence[Mapping[str, Any]], colour: str, label: str, fmt: str
) -> None:
    """Success rates with their intervals."""
    rate = np.array([summary["success_rate"] for summary in summaries])
    spread = [rate - [s["low"] for s in summaries], np.array([s["high"] for s in summaries]) - rate]
    axis.errorbar(at, rate, yerr=np.abs(spread), color=colour, fmt=fmt, capsize=3, markersize=4, label=label)


def plot_group(out: Path, group: "Group", advantages: "Advantages | None") -> None:
    """Draws a group: what each trajectory saw over time, and its rewards, returns and (when given) advantages."""
    length = group["length"][:]
    returns, succeeded = group.returns(), group.successes()
    panels = 1 + (advantages is not None)
    figure = _figure(figsize=(12, 1.45 * group.trajectories + 2.6 * panels))
    above, below = np.asarray(
        figure.subfigures(2, 1, height_ratios=[1.45 * group.trajectories, 2.6 * panels]), dtype=object
    )
    strips = above.subplots(group.trajectories, FRAMES, squeeze=False)
    for g, strip in enumerate(strips):
        shown = np.linspace(0, max(length[g] - 1, 0), FRAMES).round().astype(int)
        for axis, t in zip(strip, shown, strict=True):
            axis.imshow(group["image"][g, int(t)])
            axis.set_title(f"t={t}", fontsize=7, pad=2)
            axis.set_xticks([])
            axis.set_yticks([])
        outcome = "success" if succeeded[g] else "no success"
        strip[0].set_ylabel(f"trajectory {g}\n{outcome}\nreturn {returns[g]:.0f}", fontsize=8)
    lines = np.atleast_1d(below.subplots(panels, 1, sharex=True))
    reward = np.where(group["mask"][:], group["reward"][:].astype(float), np.nan)
    for g in range(group.trajectories):
        lines[0].step(np.arange(group.decisions), reward[g], where="post", label=f"trajectory {g}", alpha=0.8)
        if advantages is not None:
            value = np.where(group["mask"][:][g], advantages.advantage[g], np.nan)
            lines[1].step(np.arange(group.decisions), value, where="post", alpha=0.8)
    lines[0].set_ylabel("reward")
    lines[0].legend(fontsize=7, ncols=group.trajectories)
    if advantages is not None:
        lines[1].set_ylabel(f"advantage\n({advantages.attrs.a1:g} S + {advantages.attrs.a2:g} T)")
        lines[1].axhline(0, color="gray", linewidth=0.8)
    lines[-1].set_xlabel("decision t")
    figure.suptitle(f"{group.attrs.task}: {group.attrs.instruction} ({group.attrs.initial_state})", fontsize=10)
    figure.savefig(out, dpi=110)
