"""robosuite's OSC_POSE controller and Panda gripper: what an action asks for, and what they remember between steps."""

import itertools
import math
from typing import Any

import numpy as np
import robosuite.utils.transform_utils as transforms
from numpy.typing import NDArray
from robosuite.robots import SingleArm

from stages.sim import physics
from stages.sim.glfree import mujoco

_GRIPPER_SPEED = np.array([-1.0, 1.0]) * 0.01  # PandaGripper.speed per physics step, towards closed
_ARM = 6  # entries of an action that move the arm; the seventh is the gripper
_JOINTS = 7
_NO_TURN = np.identity(3)


class OscPoseController:
    """Drives the simulation under actions in [-1, 1] (7,).

    The first six entries set the grip site's goal, up to 5 cm and 0.5 rad from where it is (operational space control,
    Khatib 1987, with robosuite's gains); the seventh closes (+1) or opens (-1) the fingers, at a limited speed.

    Args:
        model, data: the simulation.
        robot: robosuite's, whose controller has been made.
        exact: states shall be robosuite's to the last bit.

    Attributes:
        memory: all that goes over from one step to the next, as one array; writing into it puts the controller back.
    """

    def __init__(self, model: mujoco.MjModel, data: mujoco.MjData, robot: SingleArm, *, exact: bool) -> None:
        self._robot = robot
        self._exact = exact
        qvel = np.array(robot._ref_joint_vel_indexes)
        arm = np.array(robot._ref_joint_actuator_indexes)
        fingers = np.array([model.actuator(name).id for name in robot.gripper.actuators])
        low, high = model.actuator_ctrlrange[fingers].T.copy()
        site = model.site(robot.gripper.important_sites["grip_site"]).id
        self._simulation = (
            model._address,
            data._address,
            data.qpos,
            data.qvel,
            data.ctrl,
            data.qfrc_bias,
            data.qM,
            data.site_xpos[site],
            data.site_xmat[site],
            site,
            np.array(robot._ref_joint_pos_indexes),
            qvel,
            _mass_index(model, qvel),
            arm,
            model.actuator_ctrlrange[arm].T.copy(),
            fingers,
            0.5 * (high + low),
            0.5 * (high - low),
        )
        # What goes over from one physics step to the next, in the order of `advance`, as parts of one array.
        shapes = [
            (3,),
            (3, 3),
            (3,),
            (3, 3),
            (3,),
            (3,),
            (_JOINTS,),
            (_JOINTS,),
            (_JOINTS, 6),
            (_JOINTS, _JOINTS),
            (2,),
        ]
        sizes = np.cumsum([0, *(math.prod(shape) for shape in shapes)])
        self.memory = np.zeros(1 + sizes[-1])  # the first says whether a reset was the last thing that happened
        parts = [self.memory[1 + a : 1 + b] for a, b in itertools.pairwise(sizes)]
        self._parts = [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]
        self._parts[8], self._parts[9] = self._parts[8].T, self._parts[9].T  # robosuite's memory layout
        self.reset()

    def reset(self) -> None:
        """Takes goal, pose and dynamics from robosuite's controller, which a reset of the environment has just made.

        LIBERO sets the initial state after that reset, so its first physics step still acts on these; so does ours.
        """
        made = self._robot.controller
        self._gains = (made.kp, made.kd, made.initial_joint)
        start = (
            *(made.goal_pos, made.goal_ori, made.ee_pos, made.ee_ori_mat, made.ee_pos_vel, made.ee_ori_vel),
            *(made.joint_pos, made.joint_vel, made.J_full, made.mass_matrix, np.zeros(2)),
        )
        for part, value in zip(self._parts, start, strict=True):
            part[...] = value
        self.memory[0] = True

    def advance(self, action: NDArray[np.float64], shown_step: int, shown: NDArray[np.float64]) -> None:
        """Runs the physics steps of one environment step; for `shown` (2, nq) see `physics.advance`."""
        delta = self._robot.controller.scale_action(action[:_ARM])
        turns = not all(math.isclose(angle, 0.0) for angle in delta[3:])
        turn = transforms.quat2mat(transforms.axisangle2quat(delta[3:])) if turns else _NO_TURN
        close = _GRIPPER_SPEED * np.sign(action[_ARM:])
        compiled: Any = physics.advance  # its types are numba's
        compiled(
            *self._simulation,
            *self._gains,
            *(delta[:3], turn, turns, close, self._exact, bool(self.memory[0])),
            *self._parts,
            *(shown_step, shown),
        )
        self.memory[0] = False


def _mass_index(model: mujoco.MjModel, dofs: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where MuJoCo's sparse mass matrix holds the entries (i, j) of a chain of joints."""
    index = np.full((len(dofs), len(dofs)), -1)
    places = {dof: i for i, dof in enumerate(dofs.tolist())}
    for dof, i in places.items():
        address, ancestor = int(model.dof_Madr[dof]), dof  # a row holds a joint and its ancestors, towards the root
        while ancestor >= 0:
            if ancestor in places:
                index[i, places[ancestor]] = index[places[ancestor], i] = address
            address, ancestor = address + 1, int(model.dof_parentid[ancestor])
    if (index < 0).any():
        raise ValueError("the arm's joints are no chain, so parts of their mass matrix are not stored")
    return index
