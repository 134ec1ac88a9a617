"""Rewards from where they come: a reward artifact, a bare program, or the built-in generator."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from stages.errors import ArtifactError, MismatchError, ParamsError
from stages.params import GenRewardParams
from stages.rewards.interface import Context
from stages.rewards.program import Reward
from stages.store.artifacts import write_json
from stages.store.provenance import read_manifest
from stages.types import Task

PROGRAM, KEY_POSES = "reward.py", "key_poses.json"


def load_reward(path: Path) -> Reward:
    """The reward of an artifact's folder, or of a bare program, any file, which may be tried on any task.

    Raises:
        ArtifactError: no whole reward there, or key poses that are none.
        RewardError: the program does what no reward program may.
    """
    from stages.rewards.sandbox import check_program

    bare = path.is_file() or (path.suffix == ".py" and not path.is_dir())
    task = "" if bare else str(read_manifest(path, "reward").details.get("task", ""))
    program, poses = path if bare else path / PROGRAM, path / KEY_POSES
    try:
        source = program.read_text(encoding="utf-8-sig")  # some editors begin with a byte order mark
        key_poses = _key_poses(json.loads(poses.read_text(encoding="utf-8"))) if poses.is_file() else ()
    except FileNotFoundError:
        raise ArtifactError(
            f"{program} does not exist; expected a reward program: write one with `tgrpo gen-reward`"
        ) from None
    except (OSError, ValueError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise ArtifactError(f"the reward {path} cannot be read ({reason}); copy it again, or write it again") from None
    check_program(source, str(program))
    return Reward(task, source, key_poses, str(program))


def _key_poses(data: Any) -> tuple[dict[str, Any], ...]:
    """What `write_reward` wrote. Raises ValueError where it is something else."""

    def vector(value: Any, size: int) -> list[float]:
        array = np.asarray(value, np.float64)
        if array.shape != (size,) or not np.isfinite(array).all():
            raise ValueError(f"{KEY_POSES}: expected {size} numbers, found {str(value)[:60]}")
        return [float(x) for x in array]

    if not isinstance(data, list) or not all(isinstance(pose, dict) for pose in data):
        raise ValueError(f"{KEY_POSES}: expected a list of key poses")
    try:
        return tuple(
            {
                "ee_pos": vector(pose["ee_pos"], 3),
                "ee_quat": vector(pose["ee_quat"], 4),
                "gripper_opening": vector([pose["gripper_opening"]], 1)[0],
                "object_pos": {str(name): vector(pos, 3) for name, pos in pose["object_pos"].items()},
            }
            for pose in data
        )
    except (KeyError, AttributeError) as error:
        raise ValueError(f"{KEY_POSES}: a key pose lacks {error}") from None


def write_reward(folder: Path, reward: Reward) -> None:
    """Writes the program and its key poses into an artifact in the making; its manifest has to name the task."""
    (folder / PROGRAM).write_text(reward.source, encoding="utf-8")
    if reward.key_poses:
        write_json(folder / KEY_POSES, list(reward.key_poses))


def task_context(task: Task) -> Context:
    """A task's context from its files: as the simulator gives it, less joints and places that no goal speaks of.

    Enough to write a program by, not to run one: the ranges of joints are not known.

    Raises:
        TaskError: a goal speaks of a fixture whose joints are not known. SimulatorError: LIBERO is not installed.
    """
    from stages.sim.goals import parse_goal
    from stages.sim.joint_goals import joint_goals
    from stages.sim.tasks import task_object_names

    goals, objects = parse_goal(task), task_object_names(task)
    joints = joint_goals(goals)
    moved = tuple(dict.fromkeys(joint.joint for joint in joints.values()))
    regions = [name for goal in goals if len(goal) == 3 for name in goal[2:] if name not in objects]
    return Context(
        task=task.id,
        object_names=objects,
        joint_names=moved,
        joint_ranges=((-np.inf, np.inf),) * len(moved),
        place_names=tuple(dict.fromkeys([*regions, *(joint.handle for joint in joints.values())])),
        goals=goals,
        max_steps=task.max_env_steps,
    )


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


def key_pose_reward(params: GenRewardParams, task: str, demo: Path) -> Reward:
    """The generated two-part program, with the key poses of a demonstration.

    Args:
        demo: a group of the task with a trajectory that succeeds; the first such is read.

    Raises:
        MismatchError: a group of another task, or without a success.
        ArtifactError: no whole group.
    """
    from stages.rewards.builtin import Thresholds, key_pose_program, key_poses_of, stage_program, stages_of
    from stages.rewards.sandbox import RewardProcess
    from stages.rewards.scorer import make_context, score_trajectories
    from stages.sim.joint_goals import joint_goals
    from stages.store.groups import open_group

    group = open_group(demo)
    if group.attrs.task != task:
        raise MismatchError(f"{demo} is a demonstration of {group.attrs.task}, and the task is {task}")
    context = make_context(task, group.names, group.attrs.max_env_steps)
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
