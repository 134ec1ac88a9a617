"""Pictures of what artifacts hold: a run's curves, and a group's images, rewards, returns and advantages."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from stages.store.advantages import Advantages
    from stages.store.groups import Group

CURVES = (
    ("success", "success of sampled trajectories"),
    ("return", "return"),
    ("kl", "KL to the reference (nats per token)"),
    ("entropy", "entropy (nats per token)"),
    ("clip_fraction", "clip fraction"),
    ("decisions", "decisions per trajectory"),
)
FRAMES = 8


def _figure(**options: Any) -> "Figure":
    # The object interface needs no display and leaves matplotlib's global state alone.
    from matplotlib.figure import Figure

    return Figure(layout="constrained", **options)


def plot_history(
    out: Path, history: Sequence[dict[str, float]], before: Sequence[dict[str, Any]], after: Sequence[dict[str, Any]]
) -> None:
    """Draws a run's history (one line per iteration) and the evaluations at its ends, with their intervals."""
    figure = _figure(figsize=(12, 6.5))
    axes = figure.subplots(2, 3).ravel()
    iteration = [row["iteration"] for row in history]
    for axis, (name, title) in zip(axes, CURVES, strict=True):
        axis.plot(iteration, [row[name] for row in history], color="tab:blue", marker=".", label="sampled")
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("iteration", fontsize=9)
        axis.grid(alpha=0.3)
    colours = ("tab:orange", "tab:green", "tab:red", "tab:purple")
    for colour, *ends in zip(colours, before, after, strict=False):
        for at, summary in zip((iteration[0] - 1, iteration[-1]), ends, strict=True):
            rate = summary["success_rate"]
            spread = [[rate - summary["low"]], [summary["high"] - rate]]
            axes[0].errorbar([at], [rate], yerr=spread, color=colour, fmt="o", capsize=4)
        label = f"official states, temperature {ends[0]['temperature']:g} (95%)"
        axes[0].plot([], [], "o", color=colour, label=label)
    axes[0].set_ylim(-0.03, 1.03)
    axes[0].legend(fontsize=8)
    figure.savefig(out, dpi=110)


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
