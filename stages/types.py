"""The plain records that pass between rooms. Numpy only; axes are named by letters.

G trajectory of a group, T time step (one policy decision, held for K environment steps), K environment step within a
decision, A action token (7), S entry of the flattened MuJoCo state, N environment of a vector. Of a scene: O object,
J joint of a fixture, R place, Q predicate of the goal.
"""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

ACTION_DIM = 7
PROPRIO_DIM = 8
ENV_STEPS_PER_SECOND = 20


@dataclass(frozen=True)
class Task:
    """One LIBERO task: what to do (`language`), where (`bddl_file`), and for how long (`max_env_steps`, 20 per second)."""

    suite: str
    index: int
    name: str
    language: str
    bddl_file: Path
    init_states_file: Path
    max_env_steps: int

    @property
    def id(self) -> str:
        """The name used in params, handles and artifacts, such as `libero_object/6` (index from 0, as LIBERO counts)."""
        return f"{self.suite}/{self.index}"


@dataclass(frozen=True)
class InitialState:
    """Where an episode starts: one of the 50 official states, or a draw of LIBERO's placement sampler.

    Training uses `sampled` (index = the sampler's seed); evaluation uses `official` (index 0..49). Keeping them apart is
    what makes an evaluation held out.
    """

    source: Literal["official", "sampled"]
    index: int

    def __str__(self) -> str:
        return f"{self.source}/{self.index}"


@dataclass(frozen=True)
class SceneNames:
    """What the axes of a task's scenes stand for."""

    object_names: tuple[str, ...]  # O: movable objects, in the order of the BDDL file
    joint_names: tuple[str, ...]  # J: of fixtures, such as `wooden_cabinet_1_top_level`
    joint_ranges: tuple[tuple[float, float], ...]  # J: lower and upper end; m for a drawer, rad for a door or knob
    place_names: tuple[str, ...]  # R: regions that the goal names, and the handles and knobs of its fixtures
    goals: tuple[tuple[str, ...], ...]  # Q: predicate and arguments, ("in", "butter_1", "basket_1_contain_region")


@dataclass(frozen=True)
class Scene:
    """What a reward may read: the world after an environment step. Any leading axes (...), the same for all fields.

    Lengths are metres in the world frame, quaternions are (x, y, z, w), velocities are per second in the world frame.
    """

    ee_pos: NDArray[np.float64]  # (..., 3) the grip site between the fingers
    ee_quat: NDArray[np.float64]  # (..., 4)
    gripper_qpos: NDArray[np.float64]  # (..., 2) finger joints; about (0.04, -0.04) is open
    object_pos: NDArray[np.float64]  # (..., O, 3) body origins, in the order of the task's object names
    object_quat: NDArray[np.float64]  # (..., O, 4)
    object_lin_vel: NDArray[np.float64]  # (..., O, 3) m/s, of the body origin
    object_ang_vel: NDArray[np.float64]  # (..., O, 3) rad/s
    grasped: NDArray[np.bool_]  # (..., O) both finger pads touch the object
    touched: NDArray[np.bool_]  # (..., O) the hand or a finger touches the object
    joint_pos: NDArray[np.float64]  # (..., J) m or rad
    place_pos: NDArray[np.float64]  # (..., R, 3)
    goal: NDArray[np.bool_]  # (..., Q) the predicate holds now, by LIBERO's own judgement
    success: NDArray[np.bool_]  # (...) LIBERO's BDDL goal holds now: all of `goal`

    @classmethod
    def stack(cls, scenes: list["Scene"], axis: int = 0) -> "Scene":
        """Joins scenes along a new axis."""
        return cls(**{f.name: np.stack([getattr(s, f.name) for s in scenes], axis) for f in fields(cls)})

    def __getitem__(self, key: object) -> "Scene":
        """Indexes the leading axes of every field."""
        return Scene(**{f.name: getattr(self, f.name)[key] for f in fields(self)})


@dataclass(frozen=True)
class VectorObservation:
    """What N environments show after `reset` or `step`.

    After a step, `sim_state[n, :env_steps[n]]` holds the state after each environment step that was run (a decision ends
    early when the goal is reached); the rest repeats the last one. After a reset, `env_steps` is 0 and all K entries hold
    the settled initial state. Rows of environments that were not stepped keep their last values.
    """

    image: NDArray[np.uint8]  # (N, H, W, 3) agentview, RGB, upright (rotated by 180 degrees from LIBERO's raw frame)
    proprio: NDArray[np.float32]  # (N, 8) end-effector position (m), axis-angle (rad), the two finger joints (m)
    scene: Scene  # leading axis N
    sim_state: NDArray[np.float64]  # (N, K, S) flattened MuJoCo state: time, qpos, qvel
    env_steps: NDArray[np.int64]  # (N,) environment steps run for this decision, 0..K

    def __getitem__(self, rows: NDArray[np.int64]) -> "VectorObservation":
        """What some of the environments show."""
        return VectorObservation(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})
