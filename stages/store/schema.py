"""The one table of what a zarr artifact holds: every array's name, axes, dtype, unit and chunks, and every attribute.

Writers create from it, readers check against it, and `docs/format.md` is rendered from it (`format_doc.py`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

GROUP_VERSION = 2
ADVANTAGES_VERSION = 2

AXES = {
    "G": "trajectory of the group",
    "T": "policy decision, held for K environment steps",
    "K": "environment step within a decision (20 a second)",
    "A": "action token: position (3), rotation (3), gripper",
    "O": "object, in the order of the attribute `object_names`",
    "J": "joint of a fixture, in the order of `joint_names`",
    "R": "place, in the order of `place_names`",
    "Q": "predicate of the task's goal, in the order of `goals`",
    "S": "entry of the flattened MuJoCo state: time, qpos, qvel",
    "H": "image row, from the top",
    "W": "image column, from the left",
    "C": "red, green, blue",
    "P": "proprioception: end-effector position (3), axis-angle (3), finger joints (2)",
    "xyz": "metres in the world frame",
    "xyzw": "quaternion, scalar last",
    "finger": "the two finger joints",
}
FIXED_SIZES = {"A": 7, "C": 3, "P": 8, "xyz": 3, "xyzw": 4, "finger": 2}


@dataclass(frozen=True)
class ChunkRule:
    """How an array is cut: into one trajectory (or episode) or all, and into so many decisions (None: all of that axis)."""

    trajectories: int | None
    decisions: int | None
    description: str


CHUNKS = {
    # 16 frames of one trajectory compress 11 times on real frames, and one frame stays cheap to read.
    "frames": ChunkRule(1, 16, "one trajectory, 16 decisions"),
    "states": ChunkRule(1, 64, "one trajectory, 64 decisions"),
    "series": ChunkRule(None, 256, "all trajectories, 256 decisions"),
    "whole": ChunkRule(None, None, "one chunk"),
}


@dataclass(frozen=True)
class ArraySpec:
    """One array of a zarr artifact."""

    name: str
    axes: str  # names of AXES, separated by spaces; they are also the zarr dimension names
    dtype: str
    unit: str
    chunks: Literal["frames", "states", "series", "whole"]
    description: str

    @property
    def dims(self) -> tuple[str, ...]:
        return tuple(self.axes.split())

    def shape(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """The shape for the given axis sizes (FIXED_SIZES need not be among them)."""
        return tuple({**sizes, **FIXED_SIZES}[dim] for dim in self.dims)

    def chunk_shape(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """The zarr chunk shape by the array's rule, at least 1 along every axis."""
        rule = CHUNKS[self.chunks]
        by_rule = {"G": rule.trajectories, "E": rule.trajectories, "T": rule.decisions}
        return tuple(max(1, by_rule.get(dim) or size) for dim, size in zip(self.dims, self.shape(sizes), strict=True))


_SCENE = (
    ("ee_pos", "xyz", "float64", "m", "grip site between the fingers"),
    ("ee_quat", "xyzw", "float64", "", "orientation of the end effector"),
    ("gripper_qpos", "finger", "float64", "m", "finger joints; about (0.04, -0.04) is open"),
    ("object_pos", "O xyz", "float64", "m", "body origins"),
    ("object_quat", "O xyzw", "float64", "", "orientations of the bodies"),
    ("object_lin_vel", "O xyz", "float64", "m/s", "velocities of the body origins"),
    ("object_ang_vel", "O xyz", "float64", "rad/s", "angular velocities, about the world's axes"),
    ("grasped", "O", "bool", "", "both finger pads touch the object"),
    ("touched", "O", "bool", "", "the hand or a finger touches the object"),
    ("joint_pos", "J", "float64", "m, rad", "joints of drawers (m), doors and knobs (rad)"),
    ("place_pos", "R xyz", "float64", "m", "middles of regions, handles and knobs"),
    ("goal", "Q", "bool", "", "LIBERO's predicate holds"),
    ("success", "", "bool", "", "LIBERO's own goal predicate holds"),
)

GROUP_ARRAYS = (
    ArraySpec("image", "G T H W C", "uint8", "0..255", "frames", "agentview, upright, that decision t saw"),
    ArraySpec("proprio", "G T P", "float32", "m, rad", "series", "proprioception that decision t saw"),
    ArraySpec("action_token", "G T A", "int32", "", "series", "sampled tokens, as ids of the policy's vocabulary"),
    ArraySpec("action", "G T A", "float64", "-1..1", "series", "what the environment got; gripper -1 opens, +1 closes"),
    ArraySpec(
        "action_label", "G T A", "float64", "-1..1", "series", "what to imitate: the expert's action before noise"
    ),
    ArraySpec("log_prob", "G T A", "float32", "nat", "series", "of each sampled token, at the sampling temperature"),
    ArraySpec("entropy", "G T A", "float32", "nat", "series", "of each token's distribution, at the same temperature"),
    ArraySpec("reward", "G T", "float32", "", "series", "of the state after decision t"),
    ArraySpec("milestone", "G T", "int8", "", "series", "sub-goal reached after decision t, as the reward counts them"),
    ArraySpec("mask", "G T", "bool", "", "series", "decision t was taken; a prefix of true, then padding"),
    ArraySpec("env_steps", "G T", "int16", "", "series", "environment steps run for decision t, 0..K"),
    ArraySpec(
        "sim_state", "G T K S", "float64", "", "states", "after each environment step; past env_steps it repeats"
    ),
    *(
        ArraySpec(name, f"G T {axes}".strip(), dtype, unit, "series", f"{what}, after decision t")
        for name, axes, dtype, unit, what in _SCENE
    ),
    ArraySpec("length", "G", "int32", "", "whole", "decisions taken, the sum of mask over T"),
    ArraySpec("initial_state", "S", "float64", "", "whole", "settled start state, the same for all trajectories"),
    *(
        ArraySpec(f"initial_{name}", axes, dtype, unit, "whole", f"{what}, at the start")
        for name, axes, dtype, unit, what in _SCENE
    ),
)

ADVANTAGES_ARRAYS = (
    ArraySpec("step_advantage", "G T", "float64", "", "series", "S of eq. 6; zero for an `algo` without it"),
    ArraySpec("trajectory_advantage", "G", "float64", "", "whole", "T of eq. 7, eq. 5 for `grpo`; zero for the others"),
    ArraySpec(
        "advantage", "G T", "float64", "", "series", "what `algo` weighs a decision with; zero for `ppo` and `grape`"
    ),
    ArraySpec(
        "return", "G", "float64", "", "whole", "total reward, held successes included; the 0/1 outcome for `grpo`"
    ),
    ArraySpec("success", "G", "bool", "", "whole", "the trajectory ended in success"),
    ArraySpec("mask", "G T", "bool", "", "series", "decisions to train on; all false when the group is left out"),
)


@dataclass(frozen=True)
class GroupAttrs:
    """What a group records about itself besides its arrays (JSON, under the zarr attribute `tgrpo`)."""

    task: Annotated[str, "task id, such as `libero_object/6`"]
    instruction: Annotated[str, "what the policy was told"]
    object_names: Annotated[tuple[str, ...], "names of axis O, in the order of the BDDL file"]
    joint_names: Annotated[tuple[str, ...], "names of axis J: joints of fixtures, such as `wooden_cabinet_1_top_level`"]
    joint_ranges: Annotated[tuple[tuple[float, float], ...], "lower and upper end of each joint's range, m or rad"]
    place_names: Annotated[
        tuple[str, ...], "names of axis R: regions that the goal names, handles and knobs of its fixtures"
    ]
    goals: Annotated[
        tuple[tuple[str, ...], ...],
        "axis Q: predicate and arguments, such as `in`, `butter_1`, `basket_1_contain_region`",
    ]
    initial_state: Annotated[str, "where all trajectories start: `sampled/SEED` or `official/INDEX`"]
    labels: Annotated[tuple[str, ...], "names of the trajectories, where they have been given some; empty for rollouts"]
    action_repeat: Annotated[int, "K, environment steps for which a decision is held"]
    image_size: Annotated[int, "H and W, pixels; 0 where no images are kept"]
    temperature: Annotated[float, "of sampling; 0 is greedy"]
    stop: Annotated[str, "`first`: the first success ends all trajectories; `each`: each runs to its own end"]
    max_env_steps: Annotated[int, "environment steps after which a trajectory without success ends"]
    seed: Annotated[int, "the run's seed"]
    iteration: Annotated[int | None, "which iteration of a training loop sampled it"]
    inputs: Annotated[
        Mapping[str, Mapping[str, str]],
        "checkpoint, reward, and `group` where it was rescored -> digest, and path from this group's folder",
    ]
    params: Annotated[Mapping[str, Any], "resolved params that can change the result"]


@dataclass(frozen=True)
class AdvantagesAttrs:
    """What an advantages artifact records about itself besides its arrays (JSON, under the zarr attribute `tgrpo`)."""

    task: Annotated[str, "task id of the group"]
    algo: Annotated[str, "the `update.algo` that they are for; no other takes them"]
    a1: Annotated[float, "weight of S in eq. 8, given or found; 0 for an `algo` without S"]
    a2: Annotated[float, "weight of T in eq. 8, given or found; 0 for an `algo` without T"]
    used: Annotated[bool, "false when the group is left out of training"]
    left_out: Annotated[str, "why it is left out; empty when it is used"]
    return_std: Annotated[float, "sample standard deviation of `return`"]
    iteration: Annotated[int | None, "that of the group"]
    inputs: Annotated[Mapping[str, Mapping[str, str]], "group -> digest, and path from this artifact's folder"]
    params: Annotated[Mapping[str, Any], "resolved params that can change the result"]

    @property
    def formula(self) -> str:
        """What `advantage` holds, for people: `0.3 S + 0.7 T`, or the algorithm's name where it is no such sum."""
        return f"{self.a1:g} S + {self.a2:g} T" if self.algo.startswith("tgrpo") else self.algo


COMMON_ATTRS = {
    "kind": "`group` or `advantages`",
    "schema_version": "whole number; readers refuse any other than their own",
    "complete": "true, set as the last thing; false in a group that a failure of the simulator cut short",
    "files": "number of files besides the root `zarr.json`; with `bytes` it betrays a copy that was cut off",
    "bytes": "their total size",
    "versions": "installed versions of the packages that can change a result",
}
GROUP_SUMMARY = {
    "successes": "trajectories that ended in success",
    "mean_return": "mean total reward of a trajectory",
    "mean_length": "mean number of decisions of a trajectory",
    "env_steps": "environment steps run, all trajectories together",
}
