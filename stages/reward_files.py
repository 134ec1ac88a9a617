"""Rewards from where they come: a reward artifact, a bare program, or the built-in generator."""

import json
from dataclasses import replace
from pathlib import Path

from stages.errors import ArtifactError, MismatchError, ParamsError
from stages.params import GenRewardParams
from stages.rewards.interface import Context
from stages.rewards.program import Reward
from stages.store.artifacts import write_json
from stages.store.provenance import read_manifest

PROGRAM, KEY_POSES = "reward.py", "key_poses.json"


def load_reward(path: Path) -> Reward:
    """The reward of an artifact's folder, or of a bare program, `NAME.py`, which may be tried on any task.

    Raises:
        ArtifactError: no whole reward there.
        RewardError: the program does what no reward program may.
    """
    from stages.rewards.sandbox import check_program

    bare = path.suffix == ".py" and not path.is_dir()
    task = "" if bare else read_manifest(path, "reward").details["task"]
    program, poses = path if bare else path / PROGRAM, path / KEY_POSES
    try:
        source = program.read_text(encoding="utf-8")
        key_poses = tuple(json.loads(poses.read_text(encoding="utf-8"))) if poses.is_file() else ()
    except FileNotFoundError:
        raise ArtifactError(
            f"{program} does not exist; expected a reward program: write one with `tgrpo gen-reward`"
        ) from None
    except (OSError, ValueError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise ArtifactError(f"the reward {path} cannot be read ({reason}); copy it again, or write it again") from None
    check_program(source, str(program))
    return Reward(task, source, key_poses, str(program))


def write_reward(folder: Path, reward: Reward) -> None:
    """Writes the program and its key poses into an artifact in the making; its manifest has to name the task."""
    (folder / PROGRAM).write_text(reward.source, encoding="utf-8")
    if reward.key_poses:
        write_json(folder / KEY_POSES, list(reward.key_poses))


def builtin_reward(params: GenRewardParams, context: Context) -> Reward:
    """The generated program for a task's goal, with the thresholds of params.

    Raises:
        ParamsError: `gen_reward.program` is one that has to be made of a demonstration first.
        TaskError: the goal asks for what no built-in program knows.
    """
    from stages.rewards.builtin import Thresholds, goal_program
    from stages.sim.joint_goals import joint_goals

    if params.program != "goal":
        raise ParamsError(
            f"gen_reward.program = {params.program!r} is made of a demonstration: write the reward with `tgrpo gen-reward` and "
            "name it with --reward, or set gen_reward.program=goal"
        )
    source = goal_program(context, Thresholds.of(params), joint_goals(context.goals))
    return Reward(context.task, source, path=f"the built-in reward of {context.task}")


def key_pose_reward(params: GenRewardParams, context: Context, demo: Path) -> Reward:
    """The generated two-part program, with the key poses of a demonstration.

    Args:
        demo: a group of the task with a trajectory that succeeds; the first such is read.

    Raises:
        MismatchError: a group of another task, or without a success.
        ArtifactError: no whole group.
    """
    from stages.rewards.builtin import Thresholds, key_pose_program, key_poses_of, stage_program, stages_of
    from stages.rewards.sandbox import RewardProcess
    from stages.rewards.scorer import score_trajectories
    from stages.sim.joint_goals import joint_goals
    from stages.store.groups import open_group

    group = open_group(demo)
    if group.attrs.task != context.task:
        raise MismatchError(f"{demo} is a demonstration of {group.attrs.task}, and the task is {context.task}")
    won = group.successes().nonzero()[0]
    if not len(won):
        raise MismatchError(f"{demo} holds no success; key poses need one: name another group by --demo")
    thresholds, joints = Thresholds.of(params), joint_goals(context.goals)
    with RewardProcess(stage_program(context, thresholds, joints), "the stage program", context) as program:
        _, milestone = score_trajectories(program, group.initial_scene(), group.scene(), group["env_steps"][:])
    i, length = int(won[0]), int(group["length"][int(won[0])])
    poses = key_poses_of(
        group.scene()[i, :length], milestone[i, :length], context.object_names, stages_of(context, joints)
    )
    source = key_pose_program(replace(context, key_poses=tuple(poses)), thresholds, joints)
    return Reward(context.task, source, tuple(poses), path=f"the key-pose reward of {context.task}")
