"""Which rewards may be trained on: those with a passing report, of their own or shipped with this version."""

import functools
import json
from pathlib import Path

from stages.errors import ArtifactError, MismatchError
from stages.rewards.program import Reward
from stages.verify_reward import REPORT, read_report
from stages.workspace import DATA

SHIPPED = Path(__file__).parent / "rewards" / "builtin" / "verified.json"
REPORTS = "reports"  # of data: where `tgrpo verify-reward` writes


def refuse_unverified(reward: Reward, path: Path | None, task: str) -> None:
    """Raises MismatchError unless a report says that the reward passes.

    Args:
        path: the artifact or program that it was read from; None is the built-in one.
        task: that it shall be trained on.

    A report lies in the artifact, or under data/reports; a built-in program may be one of those that were verified when this
    version was made. A report on another program, or on this one in another task, counts for nothing.
    """
    if is_shipped(reward, task):
        return
    beside = [path / REPORT] if path is not None and path.is_dir() else []
    refused = ""
    for found in [*beside, *sorted((DATA / REPORTS).glob(f"*/{REPORT}"))]:
        if not found.exists():
            continue
        try:
            report = read_report(found)
        except ArtifactError:
            continue  # of another version of tgrpo, or somebody else's file
        if report.reward_digest != reward.digest:
            if found in beside:
                refused = f"{found} is on another program"
            continue
        if report.task != task:
            refused = refused or f"{found} is on {report.task}"
        elif report.passed:
            return
        else:
            refused = f"{found} says: {report.verdict}"
    raise MismatchError(
        f"{reward.path} is not verified for {task}{f' ({refused})' if refused else ''}; verify it with `tgrpo verify-reward "
        f"{path or '--builtin'} --task {task}`, which leaves its report in {DATA / REPORTS}, or train on it as it is with "
        "--unverified"
    )


def is_shipped(reward: Reward, task: str) -> bool:
    """Whether it is the built-in program of this task that was verified when this version was made."""
    return _shipped().get(reward.digest) == task


@functools.cache
def _shipped() -> dict[str, str]:
    """Digest of the program -> its task."""
    known = json.loads(SHIPPED.read_text(encoding="utf-8")) if SHIPPED.exists() else {}
    return {digest: entry["task"] for digest, entry in known.items()}
