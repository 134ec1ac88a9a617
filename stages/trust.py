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


def refuse_unverified(reward: Reward, path: Path | None) -> None:
    """Raises MismatchError unless a report says that the reward passes.

    Args:
        path: the artifact or program that it was read from; None is the built-in one.

    A report lies in the artifact, or under data/reports; a built-in program may be one of those that were verified when this
    version was made. A report on another program counts for nothing.
    """
    if is_shipped(reward):
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
        if report.passed:
            return
        refused = f"{found} says: {report.verdict}"
    name = path or f"--task {reward.task} --builtin"
    raise MismatchError(
        f"{reward.path} is not verified{f' ({refused})' if refused else ''}; verify it with `tgrpo verify-reward {name}`, or "
        "train on it as it is with --unverified"
    )


def is_shipped(reward: Reward) -> bool:
    """Whether it is one of the built-in programs that were verified when this version was made."""
    return reward.digest in _shipped()


@functools.cache
def _shipped() -> frozenset[str]:
    return frozenset(json.loads(SHIPPED.read_text(encoding="utf-8"))) if SHIPPED.exists() else frozenset()
