"""What a scene is read from: the parts of a task's model that rewards may know of, by name, and their places in MuJoCo's data."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.sim.glfree import mujoco
from stages.types import Scene, SceneNames

XYZW = [1, 2, 3, 0]  # from MuJoCo's order of a quaternion

_CABINET = {
    "top_handle": ("cabinet_top", (-0.0028, -0.1016, 0.1839)),
    "middle_handle": ("cabinet_middle", (-0.0028, -0.1016, 0.1104)),
    "bottom_handle": ("cabinet_bottom", (-0.0028, -0.1016, 0.0411)),
}
_HANDLES = {
    "wooden_cabinet": _CABINET,
    "white_cabinet": _CABINET,
    "microwave": {"handle": ("microdoorroot", (0.2375, -0.054, 0.0))},
    "flat_stove": {"knob": ("button", (0.0, 0.004, 0.034))},
}
"""By LIBERO's category of a fixture: what a hand takes hold of, the body it is on, and where its middle is there, m."""

_LEFT_PAD, _RIGHT_PAD, _REST_OF_GRIPPER = range(3)


class HasSceneNames:
    """The names of a scene's axes as attributes of what shows it."""

    names: SceneNames

    @property
    def object_names(self) -> tuple[str, ...]:
        return self.names.object_names

    @property
    def joint_names(self) -> tuple[str, ...]:
        return self.names.joint_names

    @property
    def joint_ranges(self) -> tuple[tuple[float, float], ...]:
        return self.names.joint_ranges

    @property
    def place_names(self) -> tuple[str, ...]:
        return self.names.place_names

    @property
    def goals(self) -> tuple[tuple[str, ...], ...]:
        return self.names.goals


class SceneParts:
    """Reads scenes of one task. Looks everything up by name once, so that a scene costs a few array operations.

    Args:
        domain: LIBERO's environment of the task.
        model: its compiled model; only poses may change later.
    """

    def __init__(self, domain: Any, model: mujoco.MjModel) -> None:
        robot = domain.robots[0]
        objects = domain.objects_dict
        self._finger_qpos = list(robot._ref_gripper_joint_pos_indexes)
        self._grip_site = robot.eef_site_id
        self._hand_body = model.body(robot.robot_model.eef_name).id
        bodies = [domain.obj_body_id[name] for name in objects]
        self._quats = np.array([4 * body + np.array(XYZW) for body in bodies])  # in the flattened xquat
        self._velocities = np.array([_free_velocity(model, body) for body in bodies])
        self._moves = np.array([[velocity[0] >= 0] for velocity in self._velocities])
        joints = [name for fixture in domain.fixtures_dict.values() for name in getattr(fixture, "joints", ())]
        self._joint_qpos = np.array([model.joint(name).qposadr[0] for name in joints], np.intp)
        goals = tuple(tuple(predicate) for predicate in domain.parsed_problem["goal_state"])
        places = _places(domain, model, goals)
        self._bodies = np.array([*bodies, *(body for body, _ in places.values())])
        self._vectors = np.zeros((len(self._bodies), 3, 1))  # to turn: angular velocities, then offsets of places
        self._vectors[len(bodies) :, :, 0] = [offset for _, offset in places.values()] or np.zeros((0, 3))
        self._geom_object = np.full(model.ngeom, -1)  # the object that a geom belongs to
        for index, thing in enumerate(objects.values()):
            for geom in thing.contact_geoms:
                self._geom_object[model.geom(geom).id] = index
        self._geom_gripper = np.full(model.ngeom, -1)  # the part of the gripper that a geom is
        for part, geoms in (
            (_REST_OF_GRIPPER, robot.gripper.contact_geoms),
            (_LEFT_PAD, robot.gripper.important_geoms["left_fingerpad"]),
            (_RIGHT_PAD, robot.gripper.important_geoms["right_fingerpad"]),
        ):
            for geom in geoms:
                self._geom_gripper[model.geom(geom).id] = part
        self.names = SceneNames(
            object_names=tuple(objects),
            joint_names=tuple(joints),
            joint_ranges=tuple((float(low), float(high)) for low, high in (model.joint(name).range for name in joints)),
            place_names=tuple(places),
            goals=goals,
        )

    def read(self, data: mujoco.MjData, goal: NDArray[np.bool_], *, success: bool) -> Scene:
        """The scene of a simulation whose poses and contacts belong to its positions, without leading axes.

        Args:
            goal: (Q,) which predicates hold.
        """
        objects = len(self._quats)
        position, velocity = data.xpos[self._bodies], data.qvel[self._velocities] * self._moves
        self._vectors[:objects, :, 0] = velocity[:, 3:]  # a free joint's angular velocity is in the body's frame
        turned = np.matmul(data.xmat[self._bodies].reshape(-1, 3, 3), self._vectors)[:, :, 0]
        left, right, rest = self._touched(data)
        return Scene(
            ee_pos=data.site_xpos[self._grip_site].copy(),
            ee_quat=data.xquat[self._hand_body, XYZW],
            gripper_qpos=data.qpos[self._finger_qpos],
            object_pos=position[:objects],
            object_quat=data.xquat.ravel()[self._quats],
            object_lin_vel=velocity[:, :3],
            object_ang_vel=turned[:objects],
            grasped=left & right,
            touched=left | right | rest,
            joint_pos=data.qpos[self._joint_qpos],
            place_pos=position[objects:] + turned[objects:],
            goal=goal.copy(),
            success=np.array(success),
        )

    def _touched(self, data: mujoco.MjData) -> NDArray[np.bool_]:
        """(3, O) whether each part of the gripper touches an object."""
        pairs = data.contact.geom
        parts, objects = self._geom_gripper[pairs], self._geom_object[pairs[:, ::-1]]
        meet = (parts >= 0) & (objects >= 0)
        touched = np.zeros((3, len(self._quats)), np.bool_)
        touched[parts[meet], objects[meet]] = True
        return touched


def _free_velocity(model: mujoco.MjModel, body: int) -> list[int]:
    """Where the velocity of a body with a free joint lies in qvel: linear (3), angular (3). -1 for one that cannot move."""
    joint = model.body_jntadr[body]
    if joint < 0 or model.jnt_type[joint] != mujoco.mjtJoint.mjJNT_FREE:
        return [-1] * 6
    start = int(model.jnt_dofadr[joint])
    return list(range(start, start + 6))


def _places(
    domain: Any, model: mujoco.MjModel, goals: tuple[tuple[str, ...], ...]
) -> dict[str, tuple[int, tuple[float, float, float]]]:
    """By name: the body that a place is fixed to, and where there (m). Regions first, in the order of the goal."""
    named = dict.fromkeys(argument for goal in goals for argument in goal[1:])
    regions = {name: domain.object_sites_dict[name] for name in named if name in domain.object_sites_dict}
    fixtures = dict.fromkeys(
        fixture
        for fixture in (regions[name].parent_name if name in regions else name for name in named)
        if fixture in domain.fixtures_dict
    )
    places = {}
    for name in regions:
        site = model.site(name)
        places[name] = (int(model.site_bodyid[site.id]), tuple(site.pos.tolist()))
    for name in fixtures:
        handles = _HANDLES.get(domain.fixtures_dict[name].category_name, {})
        for handle, (body, offset) in handles.items():
            places[f"{name}_{handle}"] = (model.body(f"{name}_{body}").id, offset)
    return places
