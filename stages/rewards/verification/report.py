"""What a verification found, as a record that belongs to one program."""

import dataclasses
import itertools
import textwrap
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from stages.errors import ArtifactError, MismatchError
from stages.rewards.verification.checks import Check, examine
from stages.rewards.verification.trajectories import Trajectories, rounded
from stages.rewards.verification.trial import Trial

REPORT_VERSION = 1
_WIDTH = 120  # columns of the findings


@dataclass(frozen=True)
class Row:
    """One trajectory with what the program said of it.

    Attributes:
        group: index of the group among the probes, and
        trajectory: its index there.
        kind: success_expected, failure_expected or either; `success` is what happened.
        returned: the sum of rewards, where a success keeps its last one until the step limit.
        best: the milestone at the highest reward.
        last: the reward of the last decision.
        rewards, milestones: of every decision, run by run: (value, decisions).
    """

    group: int
    trajectory: int
    label: str
    kind: str
    start: str
    success: bool
    returned: float
    best: str
    last: float
    rewards: tuple[tuple[float, int], ...]
    milestones: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Report:
    """The verdict on one program.

    Attributes:
        task: its id.
        reward_digest: of the program and its key poses; the report is for no other.
        probes_digest: of the recordings.
        passed: no check failed.
        rows: one for each trajectory; empty where the program did not run.
        levels: each reward that occurs, with the milestones it is given for.
        milestone_names: by index.
        decisions: of an episode without success.
        env_steps: that a decision lasts.
        seconds_per_call: CPU time inside the program; it differs from run to run.
        versions: of the packages behind the recordings and this judgement.
    """

    task: str
    reward_digest: str
    probes_digest: str
    passed: bool
    checks: tuple[Check, ...]
    rows: tuple[Row, ...]
    levels: tuple[tuple[float, tuple[str, ...]], ...]
    milestone_names: tuple[str, ...]
    decisions: int
    env_steps: int
    seconds_per_call: float | None
    versions: Mapping[str, str]

    @property
    def failed(self) -> tuple[Check, ...]:
        """The checks that were not passed."""
        return tuple(check for check in self.checks if check.passed is False)

    @property
    def verdict(self) -> str:
        """In one line."""
        applied = sum(check.passed is not None for check in self.checks)
        if self.passed:
            starts = len({row.start for row in self.rows})
            return f"passed: {applied} checks on {len(self.rows)} trajectories from {starts} starts"
        return f"refused: {len(self.failed)} of {applied} checks fail: {', '.join(check.name for check in self.failed)}"

    def told(self) -> str:
        """The verdict with what the first failed check found and where, in one line."""
        if not self.failed:
            return self.verdict
        worst = self.failed[0]
        return f"{self.verdict} ({worst.found}{f'; {worst.where}' if worst.where else ''})"

    @property
    def auc(self) -> float | None:
        """Of the return, successes over failures from the same start; None where there are not both."""
        pairs = [
            (good.returned > bad.returned) + 0.5 * (good.returned == bad.returned)
            for good, bad in itertools.product(self.rows, self.rows)
            if good.success and not bad.success and good.start == bad.start
        ]
        return float(np.mean(pairs)) if pairs else None

    def findings(self) -> str:
        """What is wrong, for whoever writes the program: a summary, then each check that failed with where it did.

        The same program on the same recordings gives the same text.
        """
        parts = [f"The program was run on recorded trajectories of {self.task}. Verdict: {self.verdict}."]
        for check in self.failed:
            lines = [f"{check.name}: {check.found}.", f"Required: {check.required}."]
            lines += [f"Seen in: {check.where}."] if check.where else []
            parts.append("\n".join(textwrap.fill(line, _WIDTH, subsequent_indent="  ") for line in lines))
        expert = next((row for row in self.rows if row.label == "expert" and row.success), None)
        if expert and self.failed:
            told = ", ".join(f"{value:g} x{count}" for value, count in expert.rewards)
            parts.append(
                textwrap.fill(
                    f"For comparison, the rewards along the expert's success from {expert.start}, decision by decision: {told}.",
                    _WIDTH,
                    subsequent_indent="  ",
                )
            )
        return "\n\n".join(parts) + "\n"

    def refuse_other(self, digest: str, where: str = "the report") -> None:
        """Raises MismatchError unless this report is on the reward of this digest."""
        if digest != self.reward_digest:
            raise MismatchError(
                f"{where} is on the reward with digest {self.reward_digest[:12]}, and this one has {digest[:12]}; verify it with "
                "`tgrpo verify-reward`"
            )

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "verdict": self.verdict, "auc": self.auc, "report_version": REPORT_VERSION}

    @classmethod
    def from_json(cls, data: Mapping[str, Any], where: str) -> "Report":
        """Reads what `to_json` wrote.

        Args:
            where: the file that it was found in, for messages.

        Raises:
            ArtifactError: it is no whole report, or its verdict is not what its checks say.
        """
        try:
            if data["report_version"] != REPORT_VERSION:
                raise ValueError
            kept = {f.name: data[f.name] for f in dataclasses.fields(cls)}
            checks = tuple(Check(**check) for check in kept.pop("checks"))
            rows = tuple(
                Row(**{**row, **{name: _pairs(row[name]) for name in ("rewards", "milestones")}})
                for row in kept.pop("rows")
            )
            levels = tuple((float(level), tuple(names)) for level, names in kept.pop("levels"))
            names = tuple(kept.pop("milestone_names"))
            report = cls(**kept, checks=checks, rows=rows, levels=levels, milestone_names=names)
            if report.passed != _passed(checks):
                raise ValueError
        except (KeyError, TypeError, ValueError, AttributeError):
            raise ArtifactError(
                f"{where} is no whole report of this version; verify the reward again with `tgrpo verify-reward`"
            ) from None
        return report


def make_report(
    task: str,
    reward_digest: str,
    probes_digest: str,
    trial: Trial,
    groups: list[Trajectories] | None,
    milestone_names: tuple[str, ...],
    versions: Mapping[str, str],
    env_steps: int,
) -> Report:
    """Examines what a trial scored.

    Args:
        groups: the scored trajectories, group by group; None where the program did not run.
        env_steps: that a decision lasts.
    """
    checks, rows, levels, horizon = list(trial.checks), [], [], 0
    if groups is not None:
        everything = Trajectories.join(groups)
        checks += examine(everything)
        horizon = everything.horizon
        rows = [row for index, group in enumerate(groups) for row in _rows(index, group)]
        levels = [(level, _milestones_at(everything, level)) for level in everything.levels().tolist()]
    return Report(
        task=task,
        reward_digest=reward_digest,
        probes_digest=probes_digest,
        passed=_passed(checks),
        checks=tuple(checks),
        rows=tuple(rows),
        levels=tuple(levels),
        milestone_names=milestone_names,
        decisions=horizon,
        env_steps=env_steps,
        seconds_per_call=trial.seconds_per_call,
        versions=versions,
    )


def _passed(checks: list[Check] | tuple[Check, ...]) -> bool:
    """An honest success was compared with failures, and nothing failed."""
    return all(check.passed is not False for check in checks) and any(
        check.name == "honest" and check.passed for check in checks
    )


def _rows(index: int, t: Trajectories) -> list[Row]:
    returns, success, rows = t.returns, t.success, []
    for i, label in enumerate(t.labels):
        reward = rounded(t.reward[i, : t.length[i]])
        milestone = t.milestone[i, : t.length[i]]
        rows.append(
            Row(
                group=index,
                trajectory=i,
                label=label,
                kind=t.kinds[i],
                start=t.starts[i],
                success=bool(success[i]),
                returned=float(returns[i]),
                best=t.milestone_name(int(milestone[int(np.argmax(reward))])),
                last=float(reward[-1]),
                rewards=tuple((float(value), len(list(run))) for value, run in itertools.groupby(reward.tolist())),
                milestones=tuple((int(value), len(list(run))) for value, run in itertools.groupby(milestone.tolist())),
            )
        )
    return rows


def _milestones_at(t: Trajectories, level: float) -> tuple[str, ...]:
    if not t.gives_milestones:
        return ()
    there = t.taken & (rounded(t.reward) == level)
    return tuple(t.milestone_name(m) for m in np.unique(t.milestone[there]).tolist())


def _pairs(runs: Any) -> tuple[tuple[Any, int], ...]:
    return tuple((value, int(count)) for value, count in runs)
