"""One LIBERO environment in this process: LIBERO's own scene, start and success; a lean physics loop and one camera.

Differences from LIBERO's own environment, by purpose:

- A reset does not rebuild the model. It restores what the rebuild would: data, fixtures, controller and gripper.
- Images, poses and proprioception are those of the state after the last physics step of an environment step; LIBERO's
  lag one physics step (2 ms) behind. Success lags in both, so an episode ends at the same step.
"""

import contextlib
from collections.abc import Iterator

import mujoco
import numpy as np
from numpy.typing import NDArray

from stages.errors import SimulatorError, TaskError
from stages.params import SimParams
from stages.sim.assets import Assets
from stages.sim.renderer import Renderer
from stages.sim.runtime import choose_backend, first_compilation, prepare, quiet
from stages.sim.tasks import official_states
from stages.types import ACTION_DIM, InitialState, Scene, Task

PHYSICS_STEPS = 25  # of 2 ms each, in one environment step
NO_OP = np.array([0.0, 0.0, 0.0, 0.0, 0.0, 0.0, -1.0])  # stand still, fingers open; with it LIBERO lets a scene settle
_PLACEMENT_ATTEMPTS = 100


class LiberoEnv:
    """A LIBERO task that can be reset to an exact start and stepped.

    The same start and actions give the same states to the last bit, in a fresh process or after any other episodes.

    Args:
        task: what to load.
        sim: renderer, image size and settling; `action_repeat` is the business of `VectorEnv`.
        assets: where the models are; the robot's visual meshes are replaced when they are `primitive`.

    Attributes:
        task: the task.
        object_names: the movable objects, in the order of the BDDL file; the O axis of `Scene`.
        state_size: S, entries of a flattened state.

    Raises:
        SimulatorError: a missing package, a refused version, no renderer, or assets that do not load.
    """

    def __init__(self, task: Task, sim: SimParams, assets: Assets) -> None:
        prepare(sim, assets.path)
        self.task = task
        self._sim = sim
        self._renderer: Renderer | None = None
        self._success: bool | None = None  # None until the first reset
        self._fresh = True
        self._synced = False
        with first_compilation():
            self._build(assets)
            self._hard_reset(0)
            self._advance(NO_OP)
        self.state_size = 1 + self._model.nq + self._model.nv

    def reset(self, start: InitialState | NDArray[np.float64]) -> None:
        """Starts an episode.

        official: LIBERO's protocol: seed 0, reset, the stored state, then `sim.settle_steps` no-ops.
        sampled: LIBERO's reset under seed `start.index`, which draws the objects' places, then the same no-ops.
        An array (S,): set as an official state is, but without settling, for replays.

        Raises:
            TaskError: there is no such official state.
        """
        state: NDArray[np.float64] | None
        if isinstance(start, InitialState):
            state = self._official_state(start.index) if start.source == "official" else None
            seed = start.index if start.source == "sampled" else 0
            settle_steps = self._sim.settle_steps
        else:
            state, seed, settle_steps = start, 0, 0
        self._hard_reset(seed)
        if state is not None:
            self.set_state(state)
        else:
            self._judge()
        for _ in range(settle_steps):
            self.step(NO_OP)

    def step(self, action: NDArray[np.float64]) -> bool:
        """Runs one environment step of 1/20 s.

        Args:
            action: (7,) displacement of the grip site (1 is 5 cm), rotation (1 is 0.5 rad) and gripper (-1 opens, +1
                closes); clipped to [-1, 1].

        Returns:
            Whether LIBERO's BDDL goal holds.
        """
        if self._success is None:
            raise SimulatorError(
                f"the environment of {self.task.id} was stepped before its first reset; call reset first"
            )
        if np.shape(action) != (ACTION_DIM,) or not np.isfinite(action).all():  # MuJoCo would reset itself, in silence
            raise SimulatorError(f"{self.task.id} was given the action {action}; expected {ACTION_DIM} finite numbers")
        self._advance(np.asarray(action, np.float64))
        return self._judge()

    def state(self) -> NDArray[np.float64]:
        """The flattened MuJoCo state (S,): time, qpos, qvel."""
        return np.concatenate([[self._data.time], self._data.qpos, self._data.qvel])

    def set_state(self, state: NDArray[np.float64]) -> None:
        """Shows a state (S,) as it is, to render it or to read its scene. To go on from a state, `reset` to it."""
        if np.shape(state) != (self.state_size,):
            raise SimulatorError(
                f"a state of {self.task.id} has shape ({self.state_size},), found {np.shape(state)}; another task's?"
            )
        self._data.time = state[0]
        self._data.qpos[:] = state[1 : 1 + self._model.nq]
        self._data.qvel[:] = state[1 + self._model.nq :]
        mujoco.mj_forward(self._model, self._data)
        self._judge()

    def scene(self) -> Scene:
        """What rewards may read, without leading axes. `success` is that of the last step (see the file's top)."""
        self._sync()
        data = self._data
        return Scene(
            ee_pos=data.site_xpos[self._grip_site].copy(),
            ee_quat=_xyzw(data.xquat[self._hand_body]),
            gripper_qpos=data.qpos[self._finger_qpos],
            object_pos=data.xpos[self._object_bodies],
            object_quat=_xyzw(data.xquat[self._object_bodies]),
            grasped=self._grasped(),
            success=np.array(bool(self._success)),
        )

    def proprio(self) -> NDArray[np.float32]:
        """What OpenVLA-OFT reads in LIBERO, (8,): grip site (m), hand as axis-angle (rad), finger joints (m)."""
        from robosuite.utils.transform_utils import quat2axisangle

        self._sync()
        axis_angle = quat2axisangle(_xyzw(self._data.xquat[self._hand_body]))
        fingers = self._data.qpos[self._finger_qpos]
        return np.concatenate([self._data.site_xpos[self._grip_site], axis_angle, fingers]).astype(np.float32)

    def render(self, size: int | None = None, camera: str = "agentview") -> NDArray[np.uint8]:
        """The camera's image (H, W, 3), RGB: LIBERO's raw frame rotated by 180 degrees, as OpenVLA sees it.

        Args:
            size: pixels of the square image; None takes `sim.image_size`.
            camera: a camera of the scene, such as `agentview`, `frontview` or `robot0_eye_in_hand`.
        """
        size = size or self._sim.image_size
        if self._renderer is None:
            self._renderer = Renderer(
                self._model,
                choose_backend(self._sim.renderer),
                size=size,
                shadows=self._sim.shadows,
                multisampling=self._sim.multisampling,
            )
        self._sync()
        return self._renderer.render(self._data, self._model.camera(camera).id, size)[::-1, ::-1]

    def close(self) -> None:
        """Frees the renderer and the simulation. May be called twice."""
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None

    def _build(self, assets: Assets) -> None:
        from stages.sim.controller import OscPoseController  # robosuite may be imported only after prepare
        from stages.sim.domain import make_domain

        with quiet(), _numpy_seed(0):
            self._env = make_domain(self.task.bddl_file, cheap_robot=assets.kind == "primitive")
            self._env.visualize(
                dict.fromkeys(self._env._visualizations, False)
            )  # hides helper sites, as LIBERO's reset
        # LIBERO appends these whenever it rebuilds the model, so its first reset draws each of them twice.
        self._env.object_property_initializers *= 2
        self._model: mujoco.MjModel = self._env.sim.model._model
        self._data: mujoco.MjData = self._env.sim.data._data
        robot = self._env.robots[0]
        self._controller = OscPoseController(self._model, self._data, robot)
        self._finger_qpos = list(robot._ref_gripper_joint_pos_indexes)
        self._grip_site = robot.eef_site_id
        self._hand_body = self._model.body(robot.robot_model.eef_name).id
        self.object_names: tuple[str, ...] = tuple(self._env.objects_dict)
        self._object_bodies = [self._env.obj_body_id[name] for name in self.object_names]
        self._geom_object = np.full(self._model.ngeom, -1)  # the object that a geom belongs to
        for index, name in enumerate(self.object_names):
            for geom in self._env.objects_dict[name].contact_geoms:
                self._geom_object[self._model.geom(geom).id] = index
        self._pads = [
            [self._model.geom(name).id for name in robot.gripper.important_geoms[side]]
            for side in ("left_fingerpad", "right_fingerpad")
        ]

    def _official_state(self, index: int) -> NDArray[np.float64]:
        states = official_states(self.task)
        if not 0 <= index < len(states):
            raise TaskError(
                f"there is no initial state official/{index}; {self.task.id} has {len(states)}, 0 to {len(states) - 1}"
            )
        return states[index]

    def _hard_reset(self, seed: int) -> None:
        """Leaves what `seed(seed)` and a reset that rebuilds the model would leave, bit by bit, in milliseconds."""
        from robosuite.utils.errors import RandomizationError

        with quiet(), _numpy_seed(seed):
            for attempt in range(_PLACEMENT_ATTEMPTS):
                # The samplers read where fixtures are before they move them: give them the model as it was built.
                self._model.body_pos[:] = self._env.built_body_pos
                self._model.body_quat[:] = self._env.built_body_quat
                self._env.sim.reset()
                mujoco.mj_forward(self._model, self._data)
                try:
                    self._env._reset_internal()
                    break
                except RandomizationError:  # some draws do not fit; LIBERO tries on with the next numbers as well
                    if attempt + 1 == _PLACEMENT_ATTEMPTS:
                        raise SimulatorError(
                            f"the objects of {self.task.id} have no place in {_PLACEMENT_ATTEMPTS} draws of seed {seed}"
                        ) from None
        mujoco.mj_forward(self._model, self._data)
        self._controller.reset()
        self._fresh = True

    def _advance(self, action: NDArray[np.float64]) -> None:
        new_action: NDArray[np.float64] | None = action
        for _ in range(PHYSICS_STEPS):
            mujoco.mj_step1(self._model, self._data)
            self._solve(1 if self._fresh else 2)
            self._controller.control(new_action)
            mujoco.mj_step2(self._model, self._data)
            new_action, self._fresh = None, False

    def _solve(self, times: int) -> None:
        """Solves for the constraint forces with the last controls, as often as robosuite does on top of its `mj_step`.

        The results are thrown away, but each solve starts where the one before it ended: without them the states drift
        from robosuite's by 1e-13 a step. Positions and velocities need no second pass, which is what makes this cheap.
        """
        mujoco.mj_fwdActuation(self._model, self._data)
        mujoco.mj_fwdAcceleration(self._model, self._data)
        for _ in range(times):
            mujoco.mj_fwdConstraint(self._model, self._data)

    def _judge(self) -> bool:
        """LIBERO's own goal predicate and visual changes (a red stove), on what the last physics step computed."""
        self._success = bool(self._env._check_success())
        self._env._post_process()
        self._synced = False
        return self._success

    def _sync(self) -> None:
        """Computes poses and contacts of the current state; a physics step leaves those of the state before it."""
        if not self._synced:
            mujoco.mj_fwdPosition(self._model, self._data)
            self._synced = True

    def _grasped(self) -> NDArray[np.bool_]:
        """(O,) whether an object touches the pads of both fingers."""
        pairs = self._data.contact.geom
        touched = np.zeros((2, len(self.object_names)), np.bool_)
        for finger, pads in enumerate(self._pads):
            for mine, other in ((0, 1), (1, 0)):
                objects = self._geom_object[pairs[np.isin(pairs[:, mine], pads), other]]
                touched[finger, objects[objects >= 0]] = True
        return touched[0] & touched[1]


def _xyzw(wxyz: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.roll(wxyz, -1, axis=-1)


@contextlib.contextmanager
def _numpy_seed(seed: int) -> Iterator[None]:
    """LIBERO and robosuite draw from numpy's global stream: seeds it here and gives it back as it was."""
    before = np.random.get_state(legacy=False)
    np.random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(before)
