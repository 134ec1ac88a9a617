"""The robot's hand in a LIBERO scene: ground truth about it and its surroundings, and actions towards a pose."""

import numpy as np
from numpy.typing import NDArray

from stages.sim.env import LiberoEnv
from stages.sim.glfree import mujoco
from stages.types import ACTION_DIM

Vector = NDArray[np.float64]
Matrix = NDArray[np.float64]

UP = np.array([0.0, 0.0, 1.0])
_GAIN = 32.0  # action per metre of error
_TURN_GAIN = 2.2  # action per radian of error
_TURN_SPEED = 0.8  # of the action's range: faster turns swing the arm
_WRIST = 0.3  # rad beyond half a circle of yaw that the wrist can still turn


class Hand:
    """The robot's hand in an environment: what it knows of the scene, and the actions that bring it elsewhere."""

    def __init__(self, env: LiberoEnv) -> None:
        self.env = env
        self._site = env.model.site("gripper0_grip_site").id

    @property
    def position(self) -> Vector:
        """The grip site, (3,), m."""
        return self.env.scene().ee_pos

    @property
    def orientation(self) -> Matrix:
        """(3, 3). Columns: the fingers' axis, the side, and where the fingers point."""
        self.env.scene()  # brings poses up to date
        return self.env.data.site_xmat[self._site].reshape(3, 3).copy()

    @property
    def opening(self) -> float:
        """Between the fingers, m."""
        return float(np.ptp(self.env.scene().gripper_qpos))

    def pose_of(self, name: str) -> tuple[Vector, Vector]:
        """Position (3,) and quaternion (x, y, z, w) of an object."""
        scene, index = self.env.scene(), self.env.object_names.index(name)
        return scene.object_pos[index], scene.object_quat[index]

    def origin_of(self, place: str) -> Vector:
        """The position (3,) of an object or of a region."""
        if place in self.env.object_names:
            return self.pose_of(place)[0]
        self.env.scene()
        return self.env.data.site(place).xpos.copy()

    def bottom_of(self, name: str) -> float:
        """The height, m, of the lowest point of an object's collision shape."""
        self.env.scene()
        model, data = self.env.model, self.env.data
        bottoms = []
        for geom in self.env._env.objects_dict[name].contact_geoms:
            index = model.geom(geom).id
            centre, half = model.geom_aabb[index, :3], model.geom_aabb[index, 3:]
            down = data.geom_xmat[index].reshape(3, 3)[2]
            bottoms.append(data.geom_xpos[index, 2] + down @ centre - np.abs(down) @ half)
        return float(min(bottoms))

    def holds(self, name: str) -> bool:
        """Whether both fingers touch the object."""
        return bool(self.env.scene().grasped[self.env.object_names.index(name)])

    def is_true(self, predicate: str, *args: str) -> bool:
        """LIBERO's own judgement of one predicate of its goals."""
        return bool(self.env._env._eval_predicate([predicate, *args]))

    def action(self, position: Vector, orientation: Matrix, gripper: float) -> Vector:
        """The action (7,) that moves and turns towards a pose."""
        action = np.zeros(ACTION_DIM)
        action[:3] = np.clip(_GAIN * (position - self.position), -1.0, 1.0)
        turn = _TURN_GAIN * rotation_vector(orientation @ self.orientation.T)
        action[3:6] = np.clip(turn, -_TURN_SPEED, _TURN_SPEED)
        action[6] = gripper
        return action


def pointing(yaw: float, tilt: float = 0.0, towards: float = 0.0) -> Matrix:
    """The orientation (3, 3) of a hand whose fingers point down, their axis at `yaw` from x, and are then raised.

    Args:
        yaw: half a circle more is the same grip; the one that keeps the wrist within its limits is taken.
        tilt: angle, rad, by which the finger tips are raised, and
        towards: the horizontal direction in which they then point.
    """
    yaw = (yaw + _WRIST) % np.pi - _WRIST  # an episode begins at pi / 2
    axis = np.array([np.cos(yaw), np.sin(yaw), 0.0])
    down = np.column_stack([axis, np.cross(-UP, axis), -UP])
    lever = np.cross(-UP, np.array([np.cos(towards), np.sin(towards), 0.0]))
    return rotation_about(lever, tilt) @ down


def rotation_about(axis: Vector, angle: float) -> Matrix:
    """The rotation matrix (3, 3) about a unit axis."""
    quat, matrix = np.empty(4), np.empty(9)
    mujoco.mju_axisAngle2Quat(quat, axis, angle)
    mujoco.mju_quat2Mat(matrix, quat)
    return matrix.reshape(3, 3)


def rotation_vector(matrix: Matrix) -> Vector:
    """Axis times angle (3,), rad, at most pi long."""
    quat, vector = np.empty(4), np.empty(3)
    mujoco.mju_mat2Quat(quat, matrix.ravel())
    mujoco.mju_quat2Vel(vector, quat, 1.0)
    return vector


def angle_of(direction: Vector) -> float:
    """Of a horizontal direction, from x, rad."""
    return float(np.arctan2(direction[1], direction[0]))
