"""One environment step in machine code: 25 physics steps of MuJoCo, each under robosuite's controller, without Python.

robosuite 1.4 runs its operational space controller in Python after every physics step of 2 ms, computes the dynamics
three times in each, and looks every index up by name: ten times the cost of the physics. Here numba compiles the whole
loop against MuJoCo's own C functions. The arithmetic is robosuite's, operation for operation, on arrays of the same
memory layout, so states are equal to the last bit. Half of the time goes into work that only this last bit needs; it can
be left out.
"""

from pathlib import Path
from typing import Any

import llvmlite.binding
import numba
import numpy as np
from numba import types
from numpy.typing import NDArray
from robosuite.utils.control_utils import nullspace_torques, opspace_matrices, orientation_error

from stages.sim.glfree import mujoco
from stages.sim.observation_clock import PHYSICS_STEPS

# Makes MuJoCo's functions known to the linker by name; calls through ctypes could not be cached on disk.
llvmlite.binding.load_library_permanently(
    str(Path(mujoco.__file__).parent / f"libmujoco.so.{mujoco.mj_versionString()}")
)
_pointer = types.uintp


def _c_function(name: str, *arguments: types.Type) -> Any:
    return types.ExternalFunction(name, types.void(*arguments))


_mj_step1 = _c_function("mj_step1", _pointer, _pointer)
_mj_step2 = _c_function("mj_step2", _pointer, _pointer)
_mj_fwdActuation = _c_function("mj_fwdActuation", _pointer, _pointer)
_mj_fwdAcceleration = _c_function("mj_fwdAcceleration", _pointer, _pointer)
_mj_fwdConstraint = _c_function("mj_fwdConstraint", _pointer, _pointer)
_mj_jacSite = _c_function("mj_jacSite", _pointer, _pointer, _pointer, _pointer, types.int32)


@numba.njit(cache=True)
def _inverse(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of a symmetric positive definite matrix, by elimination, which then needs no pivots. LAPACK takes three times as long."""
    out = matrix.copy()
    for k in range(out.shape[0]):
        pivot = 1.0 / out[k, k]
        out[k, k] = 1.0
        for j in range(out.shape[0]):
            out[k, j] *= pivot
        for i in range(out.shape[0]):
            if i != k:
                factor = out[i, k]
                out[i, k] = 0.0
                for j in range(out.shape[0]):
                    out[i, j] -= factor * out[k, j]
    return out


@numba.njit(cache=True)
def _lean_matrices(
    mass: NDArray[np.float64], j_full: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """What robosuite's `opspace_matrices` computes by three singular value decompositions, by plain inverses."""
    weighted = np.dot(_inverse(mass), j_full.T)  # M^-1 J^T
    full = np.dot(j_full, weighted)  # J M^-1 J^T, whose diagonal blocks are those of position and orientation alone
    nullspace = np.eye(mass.shape[0]) - np.dot(np.dot(weighted, _inverse(full)), j_full)
    return _inverse(full[:3, :3]), _inverse(full[3:, 3:]), nullspace


@numba.njit(cache=True, nogil=True)
def advance(
    model: int,
    data: int,
    qpos: NDArray[np.float64],
    qvel: NDArray[np.float64],
    ctrl: NDArray[np.float64],
    qfrc_bias: NDArray[np.float64],
    sparse_mass: NDArray[np.float64],
    site_pos: NDArray[np.float64],
    site_mat: NDArray[np.float64],
    site: int,
    arm_qpos: NDArray[np.int64],
    arm_qvel: NDArray[np.int64],
    mass_index: NDArray[np.int64],
    arm_ctrl: NDArray[np.int64],
    torque_range: NDArray[np.float64],
    finger_ctrl: NDArray[np.int64],
    finger_bias: NDArray[np.float64],
    finger_weight: NDArray[np.float64],
    kp: NDArray[np.float64],
    kd: NDArray[np.float64],
    rest: NDArray[np.float64],
    move: NDArray[np.float64],
    turn: NDArray[np.float64],
    turns: bool,
    close: NDArray[np.float64],
    exact: bool,
    fresh: bool,
    goal_pos: NDArray[np.float64],
    goal_mat: NDArray[np.float64],
    pos: NDArray[np.float64],
    mat: NDArray[np.float64],
    pos_vel: NDArray[np.float64],
    mat_vel: NDArray[np.float64],
    joint_pos: NDArray[np.float64],
    joint_vel: NDArray[np.float64],
    j_full: NDArray[np.float64],
    arm_mass: NDArray[np.float64],
    fingers: NDArray[np.float64],
    shown_step: int,
    shown: NDArray[np.float64],
) -> None:
    """Runs PHYSICS_STEPS physics steps under one action; everything from `goal_pos` on is read and written.

    Args:
        model, data: addresses of the mjModel and mjData, whose arrays follow (`qpos` to `site_mat`).
        site: id of the grip site, whose `site_pos` (3,) and `site_mat` (9,) are given.
        arm_qpos, arm_qvel, arm_ctrl, torque_range: where the arm's joints and torques are (7,), and limits (2, 7).
        mass_index: (7, 7) where in `sparse_mass`, MuJoCo's qM, the arm's mass matrix is.
        finger_ctrl, finger_bias, finger_weight: where the fingers' targets are (2,), their centres and half ranges, m.
        kp, kd, rest: gains (6,) and the joint angles (7,) that the null space seeks.
        move, turn, turns: the action: displacement (3,), m; rotation matrix (3, 3), and whether it is one at all.
        close: change of `fingers` (2,) in a physics step.
        exact: whether states shall be robosuite's to the last bit; else its repeated work is left out.
        fresh: whether this is the first step after a reset, which acts on the reset's pose and dynamics.
        goal_pos, goal_mat: what the controller steers to.
        pos, mat, pos_vel, mat_vel, joint_pos, joint_vel, j_full, arm_mass: pose and dynamics of the arm; the Jacobian
            (6, 7) and the mass matrix (7, 7) in Fortran order.
        fingers: the fingers' targets (2,) in [-1, 1].
        shown_step: the physics step, from 0, after which LIBERO takes its observation.
        shown: (2, nq) qpos at the begin and at the end of that step; what MuJoCo derives from positions lags one behind.
    """
    jacobian = np.zeros((6, qvel.size))
    j_pos = np.empty((7, 3)).T  # robosuite's layout, on which BLAS rounding depends
    j_ori = np.empty((7, 3)).T
    force = np.empty(3)
    torque = np.empty(3)
    wrench = np.empty(6)
    for step in range(PHYSICS_STEPS):
        if step == shown_step:
            shown[0] = qpos
        _mj_step1(model, data)
        if exact:
            # robosuite solves for the constraint forces once or twice more with the last controls and throws the
            # results away. But each solve starts where the one before it ended: without them states drift apart.
            _mj_fwdActuation(model, data)
            _mj_fwdAcceleration(model, data)
            _mj_fwdConstraint(model, data)
            if step > 0 or not fresh:
                _mj_fwdConstraint(model, data)
        if step > 0 or not fresh:
            pos[:] = site_pos
            for i in range(3):
                for j in range(3):
                    mat[i, j] = site_mat[3 * i + j]
            _mj_jacSite(model, data, jacobian[:3].ctypes.data, jacobian[3:].ctypes.data, site)
            pos_vel[:] = np.dot(jacobian[:3], qvel)
            mat_vel[:] = np.dot(jacobian[3:], qvel)
            for j in range(arm_qvel.size):
                joint_pos[j] = qpos[arm_qpos[j]]
                joint_vel[j] = qvel[arm_qvel[j]]
                for i in range(6):
                    j_full[i, j] = jacobian[i, arm_qvel[j]]
                for i in range(arm_qvel.size):
                    arm_mass[i, j] = sparse_mass[mass_index[i, j]]
        j_pos[:] = j_full[:3]
        j_ori[:] = j_full[3:]
        if step == 0:
            if turns:  # else the old goal holds
                goal_mat[:] = np.dot(turn, mat)
            goal_pos[:] = pos + move
        error = orientation_error(goal_mat, mat)
        for i in range(3):
            force[i] = (goal_pos[i] - pos[i]) * kp[i] + -pos_vel[i] * kd[i]
            torque[i] = error[i] * kp[3 + i] + -mat_vel[i] * kd[3 + i]
        if exact:
            _, lambda_pos, lambda_ori, nullspace = opspace_matrices(arm_mass, j_full, j_pos, j_ori)
            wrench[:3] = np.dot(lambda_pos, force)
            wrench[3:] = np.dot(lambda_ori, torque)
        else:
            lean_pos, lean_ori, nullspace = _lean_matrices(arm_mass, j_full)
            wrench[:3] = np.dot(lean_pos, force)
            wrench[3:] = np.dot(lean_ori, torque)
        torques = np.dot(j_full.T, wrench)
        for i in range(arm_qvel.size):
            torques[i] += qfrc_bias[arm_qvel[i]]
        torques += nullspace_torques(arm_mass, nullspace, rest, joint_pos, joint_vel)
        for i in range(arm_ctrl.size):
            ctrl[arm_ctrl[i]] = min(max(torques[i], torque_range[0, i]), torque_range[1, i])
        for i in range(finger_ctrl.size):
            fingers[i] = min(max(fingers[i] + close[i], -1.0), 1.0)
            ctrl[finger_ctrl[i]] = finger_bias[i] + finger_weight[i] * fingers[i]
        _mj_step2(model, data)
        if step == shown_step:
            shown[1] = qpos
