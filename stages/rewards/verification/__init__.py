"""Whether a reward program rewards progress: checks on trajectories that are known, and a report of what was found."""

from stages.rewards.verification.checks import Check, examine
from stages.rewards.verification.report import Report, Row, make_report
from stages.rewards.verification.trajectories import Trajectories
from stages.rewards.verification.trial import Trial, try_program

__all__ = ["Check", "Report", "Row", "Trajectories", "Trial", "examine", "make_report", "try_program"]
