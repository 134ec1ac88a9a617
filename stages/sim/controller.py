"""robosuite's OSC_POSE controller and Panda gripper without its bookkeeping: the same floats in a third of the time.

robosuite 1.4 computes everything up to three times per physics step and looks every index up by name. Here each physics
step calls the same numba functions once, on arrays of the same memory layout, so torques are equal to the last bit.
"""

import math

import mujoco
import numpy as np
import robosuite.utils.transform_utils as transforms
from numpy.typing import NDArray
from robosuite.robots import SingleArm
from robosuite.utils.control_utils import nullspace_torques, opspace_matrices, orientation_error

_GRIPPER_SPEED = np.array([-1.0, 1.0]) * 0.01  # PandaGripper.speed per physics step, towards closed
_ARM = 6  # entries of an action that move the arm; the seventh is the gripper


class OscPoseController:
    """Turns an action in [-1, 1] (7,) into joint torques and finger targets, once per physics step (2 ms).

    The first six entries set the grip site's goal, up to 5 cm and 0.5 rad from where it is (operational space control,
    Khatib 1987, with robosuite's gains); the seventh closes (+1) or opens (-1) the fingers, at a limited speed.
    """

    def __init__(self, model: mujoco.MjModel, data: mujoco.MjData, robot: SingleArm) -> None:
        self._model = model
        self._data = data
        self._robot = robot
        self._site = model.site(robot.gripper.important_sites["grip_site"]).id
        self._qpos = list(robot._ref_joint_pos_indexes)
        self._qvel = list(robot._ref_joint_vel_indexes)
        self._torque_ids = list(robot._ref_joint_actuator_indexes)
        self._finger_ids = [model.actuator(name).id for name in robot.gripper.actuators]
        self._torque_low, self._torque_high = model.actuator_ctrlrange[self._torque_ids].T.copy()
        finger_low, finger_high = model.actuator_ctrlrange[self._finger_ids].T.copy()
        self._finger_bias = 0.5 * (finger_high + finger_low)
        self._finger_weight = 0.5 * (finger_high - finger_low)
        self._jacp = np.zeros((3, model.nv))
        self._jacr = np.zeros((3, model.nv))
        self._mass = np.zeros((model.nv, model.nv))
        self.reset()

    def reset(self) -> None:
        """Takes goal, pose and dynamics from robosuite's controller, which a reset of the environment has just made.

        LIBERO sets the initial state after that reset, so its first physics step still acts on these; so does ours.
        """
        made = self._robot.controller
        self._kp, self._kd = made.kp, made.kd
        self._goal_pos, self._goal_mat = made.goal_pos, made.goal_ori
        self._rest = made.initial_joint
        self._pos, self._mat = made.ee_pos, made.ee_ori_mat
        self._pos_vel, self._mat_vel = made.ee_pos_vel, made.ee_ori_vel
        self._joint_pos, self._joint_vel = made.joint_pos, made.joint_vel
        self._j_pos, self._j_ori, self._j_full = made.J_pos, made.J_ori, made.J_full
        self._arm_mass = made.mass_matrix
        self._fingers = np.zeros(2)
        self._stale = True

    def control(self, action: NDArray[np.float64] | None) -> None:
        """Writes the controls of one physics step. `mj_step1` must have run on the current state.

        Args:
            action: a new action, or None to go on with the last one.
        """
        if not self._stale:
            self._update()
        self._stale = False
        if action is not None:
            self._set_goal(action)
        force = np.multiply(self._goal_pos - self._pos, self._kp[0:3]) + np.multiply(-self._pos_vel, self._kd[0:3])
        ori_error = orientation_error(self._goal_mat, self._mat)
        torque = np.multiply(ori_error, self._kp[3:6]) + np.multiply(-self._mat_vel, self._kd[3:6])
        _, lambda_pos, lambda_ori, nullspace = opspace_matrices(self._arm_mass, self._j_full, self._j_pos, self._j_ori)
        wrench = np.concatenate([np.dot(lambda_pos, force), np.dot(lambda_ori, torque)])
        torques = np.dot(self._j_full.T, wrench) + self._data.qfrc_bias[self._qvel]
        torques += nullspace_torques(self._arm_mass, nullspace, self._rest, self._joint_pos, self._joint_vel)
        self._fingers = np.clip(self._fingers + self._finger_direction, -1.0, 1.0)
        self._data.ctrl[self._torque_ids] = np.clip(torques, self._torque_low, self._torque_high)
        self._data.ctrl[self._finger_ids] = self._finger_bias + self._finger_weight * self._fingers

    def _set_goal(self, action: NDArray[np.float64]) -> None:
        delta = self._robot.controller.scale_action(action[:_ARM])
        if not all(math.isclose(angle, 0.0) for angle in delta[3:]):  # else the old goal holds
            self._goal_mat = np.dot(transforms.quat2mat(transforms.axisangle2quat(delta[3:])), self._mat)
        self._goal_pos = self._pos + delta[:3]
        self._finger_direction = _GRIPPER_SPEED * np.sign(action[_ARM:])

    def _update(self) -> None:
        """Reads pose and dynamics at the current state."""
        model, data = self._model, self._data
        self._pos = np.array(data.site_xpos[self._site])
        self._mat = np.array(data.site_xmat[self._site].reshape([3, 3]))
        mujoco.mj_jacSite(model, data, self._jacp, self._jacr, self._site)
        self._pos_vel = np.dot(self._jacp, data.qvel)
        self._mat_vel = np.dot(self._jacr, data.qvel)
        self._joint_pos = data.qpos[self._qpos]
        self._joint_vel = data.qvel[self._qvel]
        # The copies keep robosuite's memory layout, on which BLAS rounding depends.
        self._j_pos = np.array(self._jacp[:, self._qvel])
        self._j_ori = np.array(self._jacr[:, self._qvel])
        self._j_full = np.array(np.vstack([self._j_pos, self._j_ori]))
        mujoco.mj_fullM(model, self._mass, data.qM)
        self._arm_mass = self._mass[self._qvel, :][:, self._qvel]
