"""Makes what a reward program reads out of arrays. Imported by the sandbox, so it imports numpy alone."""

from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from itertools import repeat
from types import MappingProxyType
from typing import Any, TypeVar

import numpy as np

from stages.rewards.interface import (
    Context,
    GoalState,
    JointState,
    KeyPose,
    Moments,
    ObjectState,
    RewardInfo,
    RewardState,
)

_Record = TypeVar("_Record", ObjectState, JointState, GoalState, RewardState, RewardInfo)


def batched(context: Context, moments: Moments) -> tuple[RewardState, RewardInfo]:
    """All n moments as one state, every field with the leading axis n. Arrays are read-only."""
    m = {name: _frozen(array) for name, array in moments.items()}
    lift = _frozen(m["object_pos"][..., 2] - m["object_initial_pos"][..., 2])
    objects = {
        name: ObjectState(
            pos=m["object_pos"][:, o],
            quat=m["object_quat"][:, o],
            lin_vel=m["object_lin_vel"][:, o],
            ang_vel=m["object_ang_vel"][:, o],
            initial_pos=m["object_initial_pos"][:, o],
            initial_quat=m["object_initial_quat"][:, o],
            lift=lift[:, o],
            peak_lift=m["object_peak_lift"][:, o],
            grasped=m["object_grasped"][:, o],
            touched=m["object_touched"][:, o],
        )
        for o, name in enumerate(context.object_names)
    }
    joints = {
        name: JointState(m["joint_pos"][:, j], m["joint_initial_pos"][:, j], *context.joint_ranges[j])
        for j, name in enumerate(context.joint_names)
    }
    state = RewardState(
        ee_pos=m["ee_pos"],
        ee_quat=m["ee_quat"],
        gripper_opening=m["gripper_opening"],
        objects=MappingProxyType(objects),
        joints=MappingProxyType(joints),
        places=MappingProxyType({name: m["place_pos"][:, r] for r, name in enumerate(context.place_names)}),
        goals=tuple(GoalState(goal[0], tuple(goal[1:]), m["goal_holds"][:, p]) for p, goal in enumerate(context.goals)),
        target=context.target,
        key_poses=_key_poses(context),
        step=m["step"],
        max_steps=context.max_steps,
    )
    return state, RewardInfo(m["task_success"])


def each(context: Context, moments: Moments) -> Iterator[tuple[RewardState, RewardInfo]]:
    """The moments one by one, with plain floats and booleans where a field is a number. Arrays are read-only.

    Everything is cut out column by column beforehand: a program may be called for tens of thousands of moments, and making
    the states would take longer than the program.
    """
    m = {name: _frozen(array) for name, array in moments.items()}
    lift = m["object_pos"][..., 2] - m["object_initial_pos"][..., 2]
    objects = [
        _records(
            ObjectState,
            *(list(m[f"object_{name}"][:, o]) for name in _OBJECT_VECTORS),
            lift[:, o].tolist(),
            *(m[f"object_{name}"][:, o].tolist() for name in ("peak_lift", "grasped", "touched")),
        )
        for o in range(len(context.object_names))
    ]
    joints = [
        _records(JointState, m["joint_pos"][:, j].tolist(), m["joint_initial_pos"][:, j].tolist(), *map(repeat, range_))
        for j, range_ in enumerate(context.joint_ranges)
    ]
    goals = [
        _records(GoalState, repeat(goal[0]), repeat(tuple(goal[1:])), m["goal_holds"][:, p].tolist())
        for p, goal in enumerate(context.goals)
    ]
    n = len(m["step"])
    states = _records(
        RewardState,
        list(m["ee_pos"]),
        list(m["ee_quat"]),
        m["gripper_opening"].tolist(),
        _by_name(context.object_names, objects, n),
        _by_name(context.joint_names, joints, n),
        _by_name(context.place_names, [list(m["place_pos"][:, r]) for r in range(len(context.place_names))], n),
        zip(*goals, strict=True) if goals else repeat(()),
        repeat(context.target),
        repeat(_key_poses(context)),
        m["step"].tolist(),
        repeat(context.max_steps),
    )
    return zip(states, _records(RewardInfo, m["task_success"].tolist()), strict=True)


_OBJECT_VECTORS = ("pos", "quat", "lin_vel", "ang_vel", "initial_pos", "initial_quat")


def _records(kind: type[_Record], *columns: Iterable[Any]) -> Iterator[_Record]:
    """One record for each row of its fields. `tuple.__new__` is what a named tuple's own constructor calls, from Python."""
    return map(partial(tuple.__new__, kind), zip(*columns))  # noqa: B905, endless columns hold what does not change


def _by_name(names: tuple[str, ...], columns: list[Any], n: int) -> Iterator[Mapping[str, Any]]:
    """What stands in the columns of one row, by their names."""
    if not names:
        return repeat(MappingProxyType({}), n)
    return map(MappingProxyType, map(dict, map(partial(zip, names), zip(*columns, strict=True))))


def _key_poses(context: Context) -> tuple[KeyPose, ...]:
    return tuple(
        KeyPose(
            ee_pos=_frozen(np.array(pose["ee_pos"], np.float64)),
            ee_quat=_frozen(np.array(pose["ee_quat"], np.float64)),
            gripper_opening=float(pose["gripper_opening"]),
            object_pos=MappingProxyType(
                {name: _frozen(np.array(pos, np.float64)) for name, pos in pose["object_pos"].items()}
            ),
        )
        for pose in context.key_poses
    )


def _frozen(array: Any) -> Any:
    view = array.view()
    view.flags.writeable = False
    return view
