"""A verification as a picture: the expert's episode in stills, its rewards, what was checked, and how every probe fared."""

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from stages.film import CAMERA, with_assets_of
from stages.params import Params
from stages.rewards.verification import Report, Row
from stages.sim.starts import parse_start
from stages.types import ENV_STEPS_PER_SECOND

if TYPE_CHECKING:
    from stages.store.groups import Group

STILLS = 7  # at most
STILL_SIZE = 192  # pixels of each, square
COLUMNS = 5  # of the probes' panels
_EXPERT = "expert"
_GREEN, _GRAY, _RED = "tab:green", "0.75", "tab:red"
_COLOURS = {True: _GREEN, False: _RED}
_MARKS = {True: "passed", False: "FAILED", None: "n/a"}


def draw_verification(out: Path, report: Report, params: Params, groups: Sequence["Group"]) -> None:
    """Draws the trajectories from the first start. The stills are rendered anew, from the recorded states.

    Args:
        groups: the probes that the report is on.
    """
    from matplotlib.figure import Figure

    group = groups[0]
    rows = [row for row in report.rows if row.group == 0]
    expert = next((row for row in rows if row.label == _EXPERT), None)
    at = _moments(expert, int(group["length"][group.attrs.labels.index(_EXPERT)]))
    others = [row for row in rows if row is not expert]
    lines = -(-len(others) // COLUMNS)
    heights = [2.3, 3.4, *([1.25 * lines] if others else [])]
    figure = Figure(figsize=(14, sum(heights) + 0.5), layout="constrained")
    parts: Any = figure.subfigures(len(heights), 1, height_ratios=heights)
    _draw_stills(parts[0], report, expert, at, _render(params, group, at))
    _draw_expert_and_checks(parts[1], report, expert, at)
    if others:
        _draw_probes(parts[2], report, expert, others, lines)
    colour = _COLOURS[report.passed]
    title = f"{report.task}: {group.attrs.instruction}\nreward {report.reward_digest[:12]}: {report.verdict}"
    figure.suptitle(
        textwrap.fill(title, 150, replace_whitespace=False),
        fontsize=11,
        color=colour,
        fontweight="bold",
        parse_math=False,
    )
    figure.savefig(out, dpi=110)


def _moments(expert: Row | None, length: int) -> list[int]:
    """The decisions of the expert's run to show: at which a milestone, or a reward, was reached for the first time."""
    if expert is None:
        return np.unique(np.linspace(0, length - 1, STILLS).round().astype(int)).tolist()
    steps = _spread(expert.rewards)
    first = np.sort(np.unique(steps, return_index=True)[1]).tolist()
    if len(first) > STILLS:
        first = [first[i] for i in np.linspace(0, len(first) - 1, STILLS).round().astype(int)]
    return first


def _render(params: Params, group: "Group", at: Sequence[int]) -> list[NDArray[np.uint8]]:
    """What the expert's run looked like after these decisions."""
    from stages.sim.assets import resolve_assets
    from stages.sim.env import LiberoEnv
    from stages.sim.tasks import load_task

    expert = group.attrs.labels.index(_EXPERT)
    ends = np.cumsum(group["env_steps"][:][expert])
    states = group.states(expert)
    sim = with_assets_of(group, params.sim).model_copy(update={"settle_steps": 0})
    env = LiberoEnv(load_task(group.attrs.task), sim, resolve_assets(sim))
    try:
        env.reset(
            parse_start(group.attrs.initial_state)
        )  # puts the fixtures, which a state does not hold, in their places
        images = []
        for t in at:
            env.set_state(states[ends[t]])
            images.append(env.render(STILL_SIZE, CAMERA).copy())
        return images
    finally:
        env.close()


def _draw_stills(
    part: Any, report: Report, expert: Row | None, at: Sequence[int], images: Sequence[NDArray[np.uint8]]
) -> None:
    rewards = _spread(expert.rewards) if expert else []
    milestones = _spread(expert.milestones) if expert else []
    for axis, image, t in zip(np.atleast_1d(part.subplots(1, max(len(at), 5)))[: len(at)], images, at, strict=True):
        axis.imshow(image)
        title = f"{_seconds(report, t + 1):.1f} s"
        if expert:
            title = f"{_milestone(report, milestones[t])}reward {rewards[t]:g}, {title}"
        axis.set_title(title, fontsize=8, pad=3, parse_math=False)
    for axis in part.axes:
        axis.axis("off")


def _draw_expert_and_checks(part: Any, report: Report, expert: Row | None, at: Sequence[int]) -> None:
    left, right = part.subplots(1, 2, width_ratios=[1.0, 1.15])
    if expert is None:
        left.text(0.5, 0.5, "the program did not run on all moments", ha="center", fontsize=10)
        left.axis("off")
    else:
        _stairs(left, report, expert, _GREEN, 2.0)
        rewards = _spread(expert.rewards)
        left.plot(
            [_seconds(report, t + 1) for t in at], [rewards[t] for t in at], "o", color=_GREEN, label="stills above"
        )
        left.plot([], [], ":", color=_GREEN, label="kept until the step limit")
        left.set_title(f"the expert's success from {expert.start}: return {expert.returned:g}", fontsize=9)
        left.set_xlabel("seconds", fontsize=8)
        left.set_ylabel("reward", fontsize=8)
        left.set_yticks([level for level, _ in report.levels] if len(report.levels) <= 12 else left.get_yticks())
        left.tick_params(labelsize=8)
        left.grid(alpha=0.3)
        left.legend(fontsize=8, loc="lower right")
    right.axis("off")
    height = 1.0 / max(len(report.checks), 1)
    for index, check in enumerate(report.checks):
        y = 1.0 - (index + 0.5) * height
        colour = _GRAY if check.passed is None else _COLOURS[check.passed]
        said = f"{check.found} ({check.measured})" if check.measured else check.found
        right.text(0.00, y, _MARKS[check.passed], color=colour, fontsize=8, fontweight="bold", va="center")
        right.text(0.09, y, check.name, fontsize=8, va="center")
        words = textwrap.shorten(said, 105, placeholder=" ...")
        right.text(0.25, y, words, fontsize=7, va="center", parse_math=False)  # a program's own, no formula


def _draw_probes(part: Any, report: Report, expert: Row | None, others: Sequence[Row], lines: int) -> None:
    axes = np.asarray(part.subplots(lines, COLUMNS, sharex=True, sharey=True, squeeze=False)).ravel()
    for axis, row in zip(axes, others, strict=False):
        if expert:
            _stairs(axis, report, expert, _GRAY, 1.0)
        colour = _COLOURS[row.success] if row.success else "tab:blue"
        _stairs(axis, report, row, colour, 1.4)
        surprise = (row.success and row.kind == "failure_expected") or (
            not row.success and row.kind == "success_expected"
        )
        outcome = ("success" if row.success else "no success") + (" (!)" if surprise else "")
        axis.set_title(f"{row.label}: {row.returned:g}, {outcome}", fontsize=7, color=colour, pad=2, parse_math=False)
        axis.tick_params(labelsize=6)
        axis.grid(alpha=0.3)
    for axis in axes[len(others) :]:
        axis.axis("off")
    part.supxlabel("seconds; the number is the return, gray is the expert", fontsize=8)
    part.supylabel("reward", fontsize=8)


def _stairs(axis: Any, report: Report, row: Row, colour: str, width: float) -> None:
    """Rewards over time; a success goes on, dotted, to the step limit."""
    rewards = _spread(row.rewards)
    ends = [_seconds(report, t) for t in range(len(rewards) + 1)]
    axis.stairs(rewards, ends, baseline=None, color=colour, linewidth=width)
    if row.success:
        axis.plot([ends[-1], _seconds(report, report.decisions)], rewards[-1:] * 2, ":", color=colour, linewidth=width)


def _spread(runs: Sequence[tuple[Any, int]]) -> list[Any]:
    return [value for value, count in runs for _ in range(count)]


def _seconds(report: Report, decisions: int) -> float:
    return decisions * report.env_steps / ENV_STEPS_PER_SECOND


def _milestone(report: Report, index: int) -> str:
    if index < len(report.milestone_names):
        return f"{report.milestone_names[index]}\n"
    return ""
