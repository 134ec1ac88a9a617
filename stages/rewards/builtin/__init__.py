"""Reward programs for LIBERO's goals without an LLM: a generator of readable source text."""

from stages.rewards.builtin.goals import goal_program
from stages.rewards.builtin.key_poses import key_pose_program, key_poses_of, stage_program, stages_of
from stages.rewards.builtin.plan import JointGoal
from stages.rewards.builtin.thresholds import Thresholds

__all__ = [
    "JointGoal",
    "Thresholds",
    "goal_program",
    "key_pose_program",
    "key_poses_of",
    "stage_program",
    "stages_of",
]
