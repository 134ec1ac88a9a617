"""Runs reward programs that nobody has read: a check of the syntax, a process of its own, and limits. See docs/security.md."""

from stages.rewards.errors import RewardError
from stages.rewards.sandbox.check import check_program, milestone_names
from stages.rewards.sandbox.limits import Limits
from stages.rewards.sandbox.process import JailStrength, RewardProcess, Scored, jail_strength

__all__ = [
    "JailStrength",
    "Limits",
    "RewardError",
    "RewardProcess",
    "Scored",
    "check_program",
    "jail_strength",
    "milestone_names",
]
