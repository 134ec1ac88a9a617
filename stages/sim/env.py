"""One LIBERO environment in this process: LIBERO's own scene, start and success; a compiled physics loop and one camera.

Differences from LIBERO's own environment, by purpose:

- A reset does not rebuild the model. It restores what the rebuild would: data, fixtures, controller and gripper.
- Only what is asked for is observed. With `sim.observe: libero` images and proprioception are LIBERO's, which it takes
  before the environment step ends; with `latest` they are those of the state that the step ended in. A scene, which
  rewards read, is always of that state. Success and the goal's predicates lag one physics step (2 ms) in all, so episodes
  end at the same step.
- MuJoCo's sensors are off: nothing reads them, and they do not act on the physics.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.errors import SimulatorError, TaskError
from stages.params import SimParams
from stages.sim import domain
from stages.sim.assets import Assets
from stages.sim.backends import choose_backend
from stages.sim.glfree import mujoco
from stages.sim.observation_clock import ObservationClock
from stages.sim.renderer import Renderer
from stages.sim.runtime import first_compilation, prepare, quiet
from stages.sim.scene_parts import XYZW, HasSceneNames, SceneParts
from stages.sim.tasks import official_states
from stages.types import ACTION_DIM, InitialState, Scene, Task

NO_OP = np.array([0.0, 0.0, 0.0, 0.0, 0.0, 0.0, -1.0])  # stand still, fingers open; with it LIBERO lets a scene settle
_PLACEMENT_ATTEMPTS = 100
_INTEGRATION = int(mujoco.mjtState.mjSTATE_INTEGRATION)  # what the next physics step depends on, warm start included


class LiberoEnv(HasSceneNames):
    """A LIBERO task that can be reset to an exact start and stepped.

    The same start and actions give the same states to the last bit, in a fresh process or after any other episodes.

    Args:
        task: what to load.
        sim: renderer, image size and settling; `action_repeat` is the business of `VectorEnv`.
        assets: where the models are; the robot's visual meshes are replaced when they are `primitive`.

    Attributes:
        task: the task.
        names: what the axes of `Scene` stand for; `object_names` and the other names are attributes as well.
        state_size: S, entries of a flattened state.
        snapshot_size: entries of a snapshot.
        model, data: MuJoCo's own; writing to them is at the writer's risk.

    Raises:
        SimulatorError: a missing package, a refused version, no renderer, or assets that do not load.
    """

    def __init__(self, task: Task, sim: SimParams, assets: Assets) -> None:
        self.task = task
        self._sim = sim
        self._renderer: Renderer | None = None
        self._env: Any = None
        self._success: bool | None = None  # None until the first reset
        self._visuals_due = False
        self._synced = self._viewed = False
        self._clock = ObservationClock()
        cheap_robot = assets.kind == "primitive" and sim.observe == "latest"
        with domain.reading_scene(task, assets, cheap_robot=cheap_robot) as scene:
            prepare(sim, assets.path)
            with first_compilation():
                self._build(scene)
                self._hard_reset(0)
                self._advance(NO_OP)
        self.state_size = 1 + self.model.nq + self.model.nv
        self.snapshot_size = sum(part.size for part in self._parts())

    def reset(self, start: InitialState | NDArray[np.float64]) -> None:
        """Starts an episode.

        official: LIBERO's protocol: seed 0, reset, the stored state, then `sim.settle_steps` no-ops.
        sampled: LIBERO's reset under seed `start.index`, which draws the objects' places, then the same no-ops; with
            `sim.arm_noise`, a state drawn as the official ones were, under the same protocol.
        An array (S,): set as an official state is, but without settling, for replays.

        Raises:
            TaskError: there is no such official state.
        """
        state: NDArray[np.float64] | None
        if isinstance(start, InitialState):
            sampled = start.source == "sampled"
            state = self._drawn_state(start.index) if sampled else self._official_state(start.index)
            seed = start.index if sampled else 0
            settle_steps = self._sim.settle_steps
        else:
            state, seed, settle_steps = start, 0, 0
        self._hard_reset(seed)
        self._clock.start(forced=1 if state is None else 2)
        if state is not None:
            self._put(state)
        self._show()
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
        self._update_visuals()
        self._advance(np.asarray(action, np.float64))
        return self._judge()

    def snapshot(self) -> NDArray[np.float64]:
        """All that decides what the next steps do and show, (snapshot_size,). For an environment of the same task."""
        return np.concatenate([part.ravel() for part in self._parts()])

    def restore(self, snapshot: NDArray[np.float64]) -> None:
        """Goes back, or over, to where a snapshot was taken: the same actions then give the same states and images."""
        if np.shape(snapshot) != (self.snapshot_size,):
            raise SimulatorError(
                f"a snapshot of {self.task.id} has shape ({self.snapshot_size},), found {np.shape(snapshot)}"
            )
        parts = self._parts()
        pieces = np.split(snapshot, np.cumsum([part.size for part in parts])[:-1])
        for part, piece in zip(parts, pieces, strict=True):
            part[...] = piece.reshape(part.shape)
        flags, integration = parts[:2]
        self._success, self._visuals_due = bool(flags[0]), bool(flags[1])
        self._clock.memory = (flags[2], flags[3])
        self._goal[:] = flags[4:]
        mujoco.mj_setState(self.model, self.data, integration, _INTEGRATION)
        self._synced = self._viewed = False

    def state(self) -> NDArray[np.float64]:
        """The flattened MuJoCo state (S,): time, qpos, qvel."""
        return np.concatenate([[self.data.time], self.data.qpos, self.data.qvel])

    def set_state(self, state: NDArray[np.float64]) -> None:
        """Shows a state (S,) as it is, to render it or to read its scene. To go on from a state, `reset` to it."""
        self._put(state)
        self._show()

    def scene(self) -> Scene:
        """What rewards may read, without leading axes. `goal` and `success` are of the last step (see the file's top)."""
        self._sync()
        return self._scene_parts.read(self.data, self._goal, success=bool(self._success))

    def proprio(self) -> NDArray[np.float32]:
        """What OpenVLA-OFT reads in LIBERO, (8,): grip site (m), hand as axis-angle (rad), finger joints (m)."""
        from robosuite.utils.transform_utils import quat2axisangle

        view = self._view()
        axis_angle = quat2axisangle(view.xquat[self._hand_body, XYZW])
        joints = self._shown[1] if self._sim.observe == "libero" else self.data.qpos
        return np.concatenate([view.site_xpos[self._grip_site], axis_angle, joints[self._finger_qpos]]).astype(
            np.float32
        )

    def render(self, size: int | None = None, camera: str = "agentview") -> NDArray[np.uint8]:
        """The camera's image (H, W, 3), RGB: LIBERO's raw frame rotated by 180 degrees, as OpenVLA sees it.

        Args:
            size: pixels of the square image; None takes `sim.image_size`.
            camera: a camera of the scene, such as `agentview`, `frontview` or `robot0_eye_in_hand`.

        Raises:
            SimulatorError: the scene has no such camera.
        """
        cameras = [self.model.camera(index).name for index in range(self.model.ncam)]
        if camera not in cameras:
            raise SimulatorError(f"there is no camera {camera!r} in {self.task.id}; it has {', '.join(cameras)}")
        size = size or self._sim.image_size
        if self._renderer is None:
            self._renderer = Renderer(
                self.model,
                choose_backend(self._sim.renderer),
                size=size,
                shadows=self._sim.shadows,
                multisampling=self._sim.multisampling,
            )
        if self._sim.observe == "latest":
            self._update_visuals()
        return self._renderer.render(self._view(), cameras.index(camera), size)[::-1, ::-1]

    def close(self) -> None:
        """Frees the renderer and the simulation. May be called twice; after it nothing else may be called."""
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None
        if self._env is not None:
            self._env.sim.free()  # robosuite's objects refer to each other in circles, and would keep the model
            self._env, self._success = None, None
            del self.model, self.data, self._viewed_data, self._controller

    def _build(self, scene: domain.Scene) -> None:
        from stages.sim.controller import OscPoseController  # robosuite may be imported only after prepare

        with quiet(), _numpy_seed(0):
            self._env = domain.make_domain(scene)
            self._env.visualize(
                dict.fromkeys(self._env._visualizations, False)
            )  # hides helper sites, as LIBERO's reset
        # LIBERO appends these whenever it rebuilds the model, so its first reset draws each of them twice.
        self._env.object_property_initializers *= 2
        self.model: mujoco.MjModel = self._env.sim.model._model
        self.data: mujoco.MjData = self._env.sim.data._data
        self.model.opt.disableflags |= int(mujoco.mjtDisableBit.mjDSBL_SENSOR)
        if self._sim.physics == "lean":  # MuJoCo's own choice for models of more joints; it rounds differently
            self.model.opt.jacobian = mujoco.mjtJacobian.mjJAC_SPARSE
        self._viewed_data = mujoco.MjData(self.model)
        self._shown = np.tile(self.data.qpos, (2, 1))
        robot = self._env.robots[0]
        self._controller = OscPoseController(self.model, self.data, robot, exact=self._sim.physics == "exact")
        self._finger_qpos = list(robot._ref_gripper_joint_pos_indexes)
        self._grip_site = robot.eef_site_id
        self._hand_body = self.model.body(robot.robot_model.eef_name).id
        self._scene_parts = SceneParts(self._env, self.model)
        self.names = self._scene_parts.names
        self._goal = np.zeros(len(self.names.goals), np.bool_)  # which of its predicates held at the last judgement

    def _drawn_state(self, seed: int) -> NDArray[np.float64] | None:
        """LIBERO's reset under a seed with noise on the arm's joints, as its official states have it; None without noise.

        LIBERO's wrapper resets without, so its controller, made at the standard pose, first straightens the hand of an
        official state. A start that were only reset with noise would keep its hand askew.
        """
        if self._sim.arm_noise == 0:
            return None
        noise = self._env.robots[0].initialization_noise
        noise["magnitude"] = self._sim.arm_noise
        try:
            self._hard_reset(seed)  # robosuite draws as many numbers with noise as without: the objects stay
        finally:
            noise["magnitude"] = 0.0
        return self.state()

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
                self.model.body_pos[:] = self._env.built_body_pos
                self.model.body_quat[:] = self._env.built_body_quat
                self._env.sim.reset()
                for _ in range(2):  # once for the new model, once for its renderer; each warms the next solve's start
                    mujoco.mj_forward(self.model, self.data)
                try:
                    self._env._reset_internal()
                    break
                except RandomizationError:  # some draws do not fit; LIBERO tries on with the next numbers as well
                    if attempt + 1 == _PLACEMENT_ATTEMPTS:
                        raise SimulatorError(
                            f"the objects of {self.task.id} have no place in {_PLACEMENT_ATTEMPTS} draws of seed {seed}"
                        ) from None
        mujoco.mj_forward(self.model, self.data)
        self._controller.reset()

    def _advance(self, action: NDArray[np.float64]) -> None:
        self._controller.advance(action, self._clock.pass_env_step(), self._shown)

    def _put(self, state: NDArray[np.float64]) -> None:
        if np.shape(state) != (self.state_size,):
            raise SimulatorError(
                f"a state of {self.task.id} has shape ({self.state_size},), found {np.shape(state)}; another task's?"
            )
        self.data.time = state[0]
        self.data.qpos[:] = state[1 : 1 + self.model.nq]
        self.data.qvel[:] = state[1 + self.model.nq :]
        mujoco.mj_forward(self.model, self.data)

    def _show(self) -> None:
        """Takes the present state for the observation, as LIBERO does after a reset."""
        self._shown[:] = self.data.qpos
        self._judge()
        self._update_visuals()

    def _judge(self) -> bool:
        """LIBERO's own goal predicates, on what the last physics step computed; all of them are its success."""
        self._goal[:] = [self._env._eval_predicate(predicate) for predicate in self.names.goals]
        self._success = bool(self._goal.all())
        self._visuals_due = True
        self._synced = self._viewed = False
        return self._success

    def _update_visuals(self) -> None:
        """LIBERO's visual changes (a red stove). They come after its image of the same step, but before the next."""
        if self._visuals_due:
            self._env._post_process()
            self._visuals_due = False

    def _parts(self) -> list[NDArray[np.float64]]:
        """What a snapshot is made of: flags, MuJoCo's integration state, and arrays that are written in place."""
        flags = np.array([bool(self._success), self._visuals_due, *self._clock.memory, *self._goal], np.float64)
        integration = np.empty(mujoco.mj_stateSize(self.model, _INTEGRATION))
        mujoco.mj_getState(self.model, self.data, integration, _INTEGRATION)
        model = self.model  # fixtures are placed, and stoves coloured, by writing to the model
        return [
            *(flags, integration, self._shown, self._controller.memory),
            *(model.body_pos, model.body_quat, model.site_rgba),
        ]

    def _sync(self) -> None:
        """Computes poses and contacts of the current state; a physics step leaves those of the state before it."""
        if not self._synced:
            mujoco.mj_fwdPosition(self.model, self.data)
            self._synced = True

    def _view(self) -> mujoco.MjData:
        """The poses that images and proprioception show, apart from the simulation, which goes on elsewhere."""
        if not self._viewed:
            self._viewed_data.qpos[:] = self._shown[0] if self._sim.observe == "libero" else self.data.qpos
            mujoco.mj_kinematics(self.model, self._viewed_data)
            mujoco.mj_comPos(self.model, self._viewed_data)
            mujoco.mj_camlight(self.model, self._viewed_data)
            self._viewed = True
        return self._viewed_data


@contextlib.contextmanager
def _numpy_seed(seed: int) -> Iterator[None]:
    """LIBERO and robosuite draw from numpy's global stream: seeds it here and gives it back as it was."""
    before = np.random.get_state(legacy=False)
    np.random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(before)
