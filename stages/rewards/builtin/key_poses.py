"""The two-part form R = f1(object position, key pose k) + f2(key pose k, end effector), and the key poses for it.

A key pose is the moment at which a demonstration first got beyond a stage: in reach, lifted, near and above its place, let
go. There is one for each stage, so that stage k looks towards key pose k. Where a demonstration skipped a stage, two of
them are the same moment.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.errors import MismatchError
from stages.rewards.builtin.plan import JointGoal, sub_goals
from stages.rewards.builtin.staged import stage_count, staged_program
from stages.rewards.builtin.thresholds import Thresholds
from stages.rewards.interface import Context
from stages.types import Scene


def stage_program(context: Context, thresholds: Thresholds, joint_goals: Mapping[str, JointGoal]) -> str:
    """The source of the program whose milestones `key_poses_of` reads: that of `goal_program` but for baskets.

    Raises:
        TaskError: as `goal_program`.
    """
    return staged_program(context.task, sub_goals(context, joint_goals), thresholds)


def key_poses_of(
    scenes: Scene, milestone: NDArray[np.integer[Any]], object_names: Sequence[str], stages: int
) -> list[dict[str, Any]]:
    """The key poses of a demonstration, as JSON of `interface.KeyPose`.

    Args:
        scenes: of one trajectory that succeeds, leading axis T.
        milestone: (T,) of the same moments, scored by `stage_program`.
        object_names: of the scenes' object axis.
        stages: of the task, `stages_of(context, ...)`.

    Raises:
        MismatchError: the trajectory never completes the task.
    """
    milestone = np.where(milestone > stages, -1, milestone)  # drops are no progress
    if not (milestone == stages).any():
        raise MismatchError(
            f"the demonstration gets to milestone {milestone.max()} of {stages}; key poses need one that succeeds"
        )
    moments = [int(np.argmax(milestone > stage)) for stage in range(stages)]
    return [
        {
            "ee_pos": scenes.ee_pos[t].tolist(),
            "ee_quat": scenes.ee_quat[t].tolist(),
            "gripper_opening": float(np.ptp(scenes.gripper_qpos[t])),
            "object_pos": {name: scenes.object_pos[t, o].tolist() for o, name in enumerate(object_names)},
        }
        for t in moments
    ]


def stages_of(context: Context, joint_goals: Mapping[str, JointGoal]) -> int:
    """How many stages a task has, and so how many key poses.

    Raises:
        TaskError: as `goal_program`.
    """
    return stage_count(sub_goals(context, joint_goals))


def key_pose_program(context: Context, thresholds: Thresholds, joint_goals: Mapping[str, JointGoal]) -> str:
    """The source of a vectorised program in the two-part form, which reads the state's key poses.

    Positions in key poses are of the demonstration's episode; objects stand elsewhere in others. An object's key position
    is therefore taken relative to where it stood, or, where the demonstration has it nearer to the end of its way, relative
    to where it was let go, which stands for the place. Heights are relative to where it stood. The hand's key position is
    taken relative to the object, or as it is for a joint, because fixtures hardly move.

    Raises:
        TaskError: as `goal_program`.
        MismatchError: the context does not have the task's key poses.
    """
    goals = sub_goals(context, joint_goals)
    if len(context.key_poses) != stage_count(goals):
        raise MismatchError(
            f"the two-part reward of {context.task} needs {stage_count(goals)} key poses, found {len(context.key_poses)};"
            " take them from a successful demonstration of this task"
        )
    return staged_program(context.task, goals, thresholds, two_part=True)
