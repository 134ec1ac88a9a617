"""What a reward program reads and returns: `compute_reward(state, info) -> reward` or `(reward, {"milestone": index})`.

A program is a pure function of one moment. What it would have to remember (where an object started, how high it has
been) is part of `state`, so any stored trajectory can be scored again, in any order and all at once.

Lengths are metres in the world frame, z upwards; quaternions are (x, y, z, w); speeds are per second. Every field of one
moment has the shape given here; a program that declares `VECTORISED = True` gets many moments at once, each field with
the same leading axes (...) in front, and returns arrays (...).

This module is imported by the sandbox, so it imports numpy alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

FUNCTION = "compute_reward"


class ObjectState(NamedTuple):
    """A movable object."""

    pos: Floats  # (3,) origin of its body
    quat: Floats  # (4,)
    lin_vel: Floats  # (3,) m/s
    ang_vel: Floats  # (3,) rad/s
    initial_pos: Floats  # (3,) at the start of the episode
    initial_quat: Floats  # (4,)
    lift: Any  # float: height of `pos` above `initial_pos`
    peak_lift: Any  # float: the largest `lift` of this episode so far
    grasped: Any  # bool: the pads of both fingers touch it
    touched: Any  # bool: any part of the gripper touches it


class JointState(NamedTuple):
    """A joint of a fixture: a drawer slides (m), a door or a knob turns (rad)."""

    pos: Any  # float
    initial_pos: Any  # float
    lower: float  # its range
    upper: float


class GoalState(NamedTuple):
    """One predicate of the task's goal; the task succeeds when all hold."""

    predicate: str  # in, on, open, close, turnon or turnoff
    args: tuple[str, ...]  # names of objects, places or fixtures: ("butter_1", "basket_1_contain_region")
    holds: Any  # bool: LIBERO's own judgement of this moment


class KeyPose(NamedTuple):
    """A moment of a demonstration at which something was achieved, such as the grasp."""

    ee_pos: Floats  # (3,)
    ee_quat: Floats  # (4,)
    gripper_opening: float
    object_pos: Mapping[str, Floats]  # (3,) of every object


class RewardState(NamedTuple):
    """The world after one decision."""

    ee_pos: Floats  # (3,) the grip site between the fingers
    ee_quat: Floats  # (4,)
    gripper_opening: Any  # float: between the fingers, 0 is closed, about 0.08 is open
    objects: Mapping[str, ObjectState]
    joints: Mapping[str, JointState]  # of fixtures: {"wooden_cabinet_1_top_level": ...}
    places: Mapping[str, Floats]  # (3,) each: regions that the goal names, and handles and knobs of fixtures
    goals: tuple[GoalState, ...]
    target: str  # the object of the first goal that names one; empty where none does
    key_poses: tuple[KeyPose, ...]  # of a demonstration when one was given, in their order; else empty
    step: Any  # int: environment steps so far, 20 per second
    max_steps: int  # at which an episode without success ends


class RewardInfo(NamedTuple):
    """What the simulator says of the moment."""

    task_success: Any  # bool: LIBERO's own goal predicate


@dataclass(frozen=True)
class Context:
    """What stays the same along an episode's task: names and axes of `Moments`, and what no step changes.

    O objects, J joints, R places, P goals.
    """

    task: str
    object_names: tuple[str, ...]
    joint_names: tuple[str, ...]
    joint_ranges: tuple[tuple[float, float], ...]  # lower, upper
    place_names: tuple[str, ...]
    goals: tuple[tuple[str, ...], ...]  # ("in", "butter_1", "basket_1_contain_region")
    max_steps: int
    key_poses: tuple[Mapping[str, Any], ...] = ()  # JSON of `KeyPose`: lists for arrays

    @property
    def target(self) -> str:
        return next((name for goal in self.goals for name in goal[1:2] if name in self.object_names), "")


MOMENT_FIELDS: dict[str, tuple[str, ...]] = {
    "ee_pos": ("xyz",),
    "ee_quat": ("xyzw",),
    "gripper_opening": (),
    "object_pos": ("O", "xyz"),
    "object_quat": ("O", "xyzw"),
    "object_lin_vel": ("O", "xyz"),
    "object_ang_vel": ("O", "xyz"),
    "object_initial_pos": ("O", "xyz"),
    "object_initial_quat": ("O", "xyzw"),
    "object_peak_lift": ("O",),
    "object_grasped": ("O",),
    "object_touched": ("O",),
    "joint_pos": ("J",),
    "joint_initial_pos": ("J",),
    "place_pos": ("R", "xyz"),
    "goal_holds": ("P",),
    "step": (),
    "task_success": (),
}
"""The arrays of `Moments` and their axes behind the leading one, n."""

_BOOLEAN = {"object_grasped", "object_touched", "goal_holds", "task_success"}


def moment_dtype(name: str) -> np.dtype[Any]:
    """bool, int64 (`step`) or float64."""
    return np.dtype(np.bool_ if name in _BOOLEAN else np.int64 if name == "step" else np.float64)


def moment_shape(name: str, context: Context) -> tuple[int, ...]:
    """The shape of one row."""
    sizes = {
        "xyz": 3,
        "xyzw": 4,
        "O": len(context.object_names),
        "J": len(context.joint_names),
        "R": len(context.place_names),
        "P": len(context.goals),
    }
    return tuple(sizes[axis] for axis in MOMENT_FIELDS[name])


Moments = Mapping[str, NDArray[Any]]
"""n moments of one task: every name of `MOMENT_FIELDS` -> (n, ...), of `moment_dtype` and `moment_shape`."""
