"""What the tests of built-in rewards share: contexts without a simulator, made-up moments, and running programs."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.reward_files import task_context
from stages.rewards.builtin import JointGoal
from stages.rewards.interface import MOMENT_FIELDS, Context, Moments, moment_dtype, moment_shape
from stages.rewards.states import batched, each
from stages.sim.joint_goals import joint_goals
from stages.sim.tasks import load_task

TASKS = [f"{suite}/{i}" for suite in ("libero_spatial", "libero_object", "libero_goal", "libero_10") for i in range(10)]


def context_of(task_id: str, key_poses: Sequence[Mapping[str, Any]] = ()) -> tuple[Context, Mapping[str, JointGoal]]:
    """`task_context` of the task, with ranges for its joints, and with key poses."""
    context = task_context(load_task(task_id))
    ranges = ((-3.0, 3.0),) * len(context.joint_names)
    return replace(context, joint_ranges=ranges, key_poses=tuple(key_poses)), joint_goals(context.goals)


def still(context: Context, n: int = 1) -> dict[str, NDArray[Any]]:
    """n moments in which nothing has happened: objects 1 m apart along x, places along y, the hand far away and open."""
    moments = {name: np.zeros((n, *moment_shape(name, context)), moment_dtype(name)) for name in MOMENT_FIELDS}
    for name in ("object_pos", "object_initial_pos"):
        moments[name][:, :, 0] = np.arange(len(context.object_names))
    moments["place_pos"][:, :, 1] = 10 + np.arange(len(context.place_names))
    moments["object_quat"][..., 3] = moments["object_initial_quat"][..., 3] = 1
    moments["ee_pos"][:] = (-5, -5, 1)
    moments["ee_quat"][..., 0] = 1  # fingers down
    moments["gripper_opening"][:] = 0.08
    return moments


def drawn(context: Context, n: int, rng: np.random.Generator) -> dict[str, NDArray[Any]]:
    """n random moments in which the hand, objects, places and joints are often close to where milestones change."""
    moments = still(context, n)
    objects = len(context.object_names)
    moments["object_pos"] = rng.normal(0, 0.1, (n, objects, 3))
    moments["object_initial_pos"] = rng.normal(0, 0.1, (n, objects, 3))
    moments["ee_pos"] = moments["object_pos"][np.arange(n), rng.integers(min(objects, 3), size=n)]
    moments["ee_pos"] = moments["ee_pos"] + rng.normal(0, 1, (n, 3)) * rng.choice([0.01, 0.06, 0.2], (n, 1))
    lift = moments["object_pos"][..., 2] - moments["object_initial_pos"][..., 2]
    moments["object_peak_lift"] = np.maximum(lift, rng.choice([0.0, 0.04, 0.06, 0.2], lift.shape))
    moments["object_lin_vel"] = rng.choice([0.0, 0.1], (n, objects, 3))
    moments["place_pos"] = moments["object_pos"][:, :1] + rng.normal(0, 0.08, moments["place_pos"].shape)
    moments["joint_pos"] = rng.uniform(-0.2, 0.6, moments["joint_pos"].shape) * rng.choice([1.0, 3.0])
    moments["ee_quat"] = rng.normal(0, 1, (n, 4))
    moments["gripper_opening"] = rng.uniform(0, 0.08, n)
    for name in ("object_grasped", "object_touched", "goal_holds"):
        moments[name] = rng.random(moments[name].shape) < 0.3
    moments["task_success"] = moments["goal_holds"].all(axis=1)
    return moments


def namespace_of(source: str) -> dict[str, Any]:
    """A program's names, run in a plain namespace."""
    namespace: dict[str, Any] = {"np": np, "math": math}
    exec(compile(source, "reward.py", "exec"), namespace)
    return namespace


def score(source: str, context: Context, moments: Moments) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Reward and milestone (n,) of one call for all moments."""
    reward, info = namespace_of(source)["compute_reward"](*batched(context, moments))
    return np.asarray(reward), np.asarray(info["milestone"])


def score_each(source: str, context: Context, moments: Moments) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Reward and milestone (n,) of one call a moment."""
    program = namespace_of(source)["compute_reward"]
    results = [program(state, info) for state, info in each(context, moments)]
    return np.array([float(r) for r, _ in results]), np.array([int(info["milestone"]) for _, info in results])
