"""LIBERO as Gymnasium environments, one or many at once, for use without the rest of tgrpo.

    import gymnasium
    import stages.sim.gymnasium_envs  # registers tgrpo/Libero-v0

    env = gymnasium.make("tgrpo/Libero-v0", task="libero_object/6", profile="benchmark")
    envs = gymnasium.make_vec("tgrpo/Libero-v0", num_envs=8)  # worker processes

Since 1.0 Gymnasium finds no packages by itself: import this module, or name it, `stages.sim.gymnasium_envs:tgrpo/Libero-v0`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray
from pydantic import ValidationError

from stages.errors import UsageError
from stages.params import SimParams
from stages.sim.assets import Assets, resolve_assets
from stages.sim.starts import MAX_SEED, parse_start
from stages.sim.tasks import load_task
from stages.sim.vector import VectorEnv
from stages.types import ACTION_DIM, ENV_STEPS_PER_SECOND, InitialState, Task, VectorObservation

ID = "tgrpo/Libero-v0"

DEMO = SimParams(
    assets="primitive",
    assets_dir=None,
    renderer="auto",
    image_size=96,
    shadows=False,
    multisampling=0,
    observe="latest",
    physics="lean",
    action_repeat=4,
    settle_steps=10,
    arm_noise=0.02,
    egl_device=None,
    timeout_s=60,
    max_restarts=3,
)
"""Quick on a CPU, nothing to download: the section `sim` of the params.yaml that tgrpo ships."""

BENCHMARK = DEMO.benchmark().model_copy(update={"assets": "libero"})
"""What LIBERO's published evaluations show a policy: its own meshes, 256 pixels, a decision for each environment step."""

PROFILES = {"demo": DEMO, "benchmark": BENCHMARK}

Observation = dict[str, NDArray[Any]]
Action = NDArray[np.floating[Any]]
Info = dict[str, Any]

# Wider than arm and fingers reach in any scene; an axis-angle is one full turn at most.
_PROPRIO_LIMIT = np.array([3.0, 3.0, 3.0, *[2 * np.pi] * 3, 0.1, 0.1], np.float32)


class LiberoGymEnv(gymnasium.Env[Observation, Action]):
    """One LIBERO task in this process.

    Observation: `image` (H, W, 3) uint8, agentview as OpenVLA sees it, and `proprio` (8,) float32: grip site (m), hand as
    axis-angle (rad), finger joints (m).

    Action: (7,) in [-1, 1]: displacement of the grip site (1 is 5 cm), rotation (1 is 0.5 rad), gripper (-1 opens, +1
    closes); held for `action_repeat` environment steps of 1/20 s, fewer where the goal is reached.

    Reward: 1 when LIBERO's goal holds, which terminates the episode, else 0. Truncated at `max_env_steps`.

    Starts: `reset(seed=N)` seeds the draws from LIBERO's placement sampler, and every reset draws one;
    `reset(options={"initial_state": "official/3"})` takes that state instead.

    Info: `success`, `env_steps` run in the episode so far, and `state` (S,) float64, the flattened MuJoCo state; from a
    reset also `initial_state`, by which the same start can be had again.

    Args:
        task: a LIBERO task, such as `libero_object/6`, by index or name.
        profile: `demo` or `benchmark`: rendering, and what the following arguments are when they are None.
        assets: auto, libero, primitive, or a folder with LIBERO's meshes.
        image_size: H and W, pixels, 16 to 1024.
        action_repeat: environment steps for which an action is held.
        max_env_steps: the step limit; None is that of the task's suite in LIBERO's protocol.
        render_mode: with `rgb_array`, `render` returns the observation's image.

    Attributes:
        libero: the `LiberoEnv` underneath: scene, other cameras, exact states and snapshots.

    Raises:
        UsageError: a task, a profile or a value that does not exist.
        SimulatorError: the simulator cannot start.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": ENV_STEPS_PER_SECOND}  # noqa: RUF012

    def __init__(
        self,
        task: str = "libero_object/6",
        *,
        profile: str = "demo",
        assets: str | None = None,
        image_size: int | None = None,
        action_repeat: int | None = None,
        max_env_steps: int | None = None,
        render_mode: str | None = None,
    ) -> None:
        made = _setup(task, profile, assets, image_size, action_repeat, max_env_steps, render_mode)
        from stages.sim.env import LiberoEnv  # imports mujoco, which whoever only wants many workers need not load

        self.observation_space, self.action_space = made.observation_space, made.action_space
        self.metadata = {**self.metadata, "render_fps": made.fps}
        self.render_mode = render_mode
        self.libero = LiberoEnv(made.task, made.sim, made.assets)
        self._repeat, self._limit = made.sim.action_repeat, made.max_env_steps
        self._env_steps = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Observation, Info]:
        super().reset(seed=seed)
        start = _named_start(options) or _draw(self.np_random)
        self.libero.reset(start)
        self._env_steps = 0
        return self._observation(), {**self._info(success=False), "initial_state": str(start)}

    def step(self, action: Action) -> tuple[Observation, float, bool, bool, Info]:
        success = False
        for _ in range(self._repeat):
            success = self.libero.step(np.asarray(action, np.float64))
            self._env_steps += 1
            if success:
                break
        truncated = not success and self._env_steps >= self._limit
        return self._observation(), float(success), success, truncated, self._info(success)

    def render(self) -> NDArray[np.uint8] | None:
        return np.array(self.libero.render()) if self.render_mode else None

    def close(self) -> None:
        self.libero.close()

    def _observation(self) -> Observation:
        return {"image": np.array(self.libero.render(), order="C"), "proprio": self.libero.proprio()}

    def _info(self, success: bool) -> Info:
        return {"success": success, "env_steps": self._env_steps, "state": self.libero.state()}


class LiberoGymVectorEnv(gymnasium.vector.VectorEnv[Observation, Action, NDArray[Any]]):
    """N environments of one LIBERO task in worker processes; arguments and episodes are those of `LiberoGymEnv`.

    As Gymnasium's own vector environments do it: seed s seeds the environments with s, s + 1, ...; the step after the end
    of an episode ignores the action and resets (autoreset mode NEXT_STEP); an info `name` comes with `_name`, (N,), which
    environments have it; `reset(options={"reset_mask": mask})` leaves the environments where the mask is false alone.
    """

    metadata: dict[str, Any] = {  # noqa: RUF012
        **LiberoGymEnv.metadata,
        "autoreset_mode": AutoresetMode.NEXT_STEP,
    }

    def __init__(
        self,
        num_envs: int = 1,
        task: str = "libero_object/6",
        *,
        profile: str = "demo",
        assets: str | None = None,
        image_size: int | None = None,
        action_repeat: int | None = None,
        max_env_steps: int | None = None,
        render_mode: str | None = None,
    ) -> None:
        if num_envs < 1:
            raise UsageError(f"num_envs is {num_envs}; expected at least 1")
        made = _setup(task, profile, assets, image_size, action_repeat, max_env_steps, render_mode)
        self.num_envs = num_envs
        self.single_observation_space, self.single_action_space = made.observation_space, made.action_space
        self.observation_space = batch_space(made.observation_space, num_envs)
        self.action_space = batch_space(made.action_space, num_envs)
        self.metadata = {**self.metadata, "render_fps": made.fps}
        self.render_mode = render_mode
        self._limit = made.max_env_steps
        self._generators: list[np.random.Generator | None] = [None] * num_envs
        self._env_steps = np.zeros(num_envs, np.int64)
        self._ended = np.zeros(num_envs, np.bool_)
        self._seen: VectorObservation | None = None
        self._vector = VectorEnv(made.task, num_envs, made.sim, made.assets)

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, Info]:
        if seed is None or isinstance(seed, int):
            seeds = [None if seed is None else seed + n for n in range(self.num_envs)]
        else:
            seeds = list(seed)
        if len(seeds) != self.num_envs:
            raise UsageError(f"found {len(seeds)} seeds for {self.num_envs} environments; expected one for each")
        chosen = _mask(options, self.num_envs)
        if not chosen.all():
            self._shown()  # refuses to show environments that were never reset
        for n in np.flatnonzero(chosen).tolist():
            if (own := seeds[n]) is not None:
                self._generators[n], _ = seeding.np_random(own)
        starts = self._start(chosen, _named_start(options))
        return self._observation(), self._infos(chosen, self._ended, starts)

    def step(
        self, actions: Action
    ) -> tuple[Observation, NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], Info]:
        self._shown()  # refuses a step before the first reset
        restarting = self._ended
        starts = self._start(restarting) if restarting.any() else {}
        success = np.zeros(self.num_envs, np.bool_)
        if not restarting.all():
            self._seen = seen = self._vector.step(np.asarray(actions, np.float64), ~restarting)
            self._env_steps += np.where(restarting, 0, seen.env_steps)
            success = seen.scene.success & ~restarting
        truncated = ~success & ~restarting & (self._env_steps >= self._limit)
        self._ended = success | truncated
        infos = self._infos(np.ones(self.num_envs, np.bool_), success, starts)
        return self._observation(), success.astype(np.float64), success, truncated, infos

    def render(self) -> tuple[NDArray[np.uint8], ...] | None:
        return tuple(self._shown().image.copy()) if self.render_mode else None

    def close_extras(self, **kwargs: Any) -> None:
        self._vector.close()

    def _start(self, chosen: NDArray[np.bool_], start: InitialState | None = None) -> dict[int, str]:
        """Starts new episodes in the chosen environments; returns the names of their initial states."""
        indices = np.flatnonzero(chosen).tolist()
        starts = {n: start or _draw(self._generator(n)) for n in indices}
        self._seen = self._vector.reset(list(starts.values()), indices)
        self._env_steps[chosen] = 0
        self._ended = self._ended & ~chosen
        return {n: str(start) for n, start in starts.items()}

    def _generator(self, n: int) -> np.random.Generator:
        generator = self._generators[n] or seeding.np_random()[0]
        self._generators[n] = generator
        return generator

    def _shown(self) -> VectorObservation:
        if self._seen is None:
            raise gymnasium.error.ResetNeeded("the environments were not reset yet; call reset first")
        return self._seen

    def _observation(self) -> Observation:
        # Copies: with autoreset, an observation's rows can come from the one before it.
        return {"image": self._shown().image.copy(), "proprio": self._shown().proprio.copy()}

    def _infos(self, chosen: NDArray[np.bool_], success: NDArray[np.bool_], starts: dict[int, str]) -> Info:
        infos: Info = {}
        for n in np.flatnonzero(chosen).tolist():
            info: Info = {
                "success": bool(success[n]),
                "env_steps": int(self._env_steps[n]),
                "state": self._shown().sim_state[n, -1],
            }
            infos = self._add_info(infos, {**info, "initial_state": starts[n]} if n in starts else info, n)
        return infos


@dataclass(frozen=True)
class _Setup:
    """What the arguments of both environments mean."""

    task: Task
    sim: SimParams
    assets: Assets
    max_env_steps: int
    fps: float
    observation_space: Any  # spaces.Dict, whose type parameter no type checker can tell
    action_space: Any


def _setup(
    task: str,
    profile: str,
    assets: str | None,
    image_size: int | None,
    action_repeat: int | None,
    max_env_steps: int | None,
    render_mode: str | None,
) -> _Setup:
    if profile not in PROFILES:
        raise UsageError(f"there is no profile {profile!r}; known are {', '.join(PROFILES)}")
    if render_mode not in (None, "rgb_array"):
        raise UsageError(f"there is no render_mode {render_mode!r}; expected 'rgb_array' or None")
    if max_env_steps is not None and max_env_steps < 1:
        raise UsageError(f"max_env_steps is {max_env_steps}; expected at least 1, or None for the suite's own")
    found = load_task(task)
    given: dict[str, Any] = {"image_size": image_size, "action_repeat": action_repeat, "assets": assets}
    if assets is not None and assets not in ("auto", "libero", "primitive"):
        given |= {"assets": "libero", "assets_dir": assets}
    wanted = {name: value for name, value in given.items() if value is not None}
    try:
        sim = SimParams.model_validate({**PROFILES[profile].model_dump(), **wanted})
    except ValidationError as error:
        first = error.errors()[0]
        raise UsageError(f"{first['loc'][0]} is {first['input']!r}: {first['msg'].lower()}") from None
    size = sim.image_size
    return _Setup(
        task=found,
        sim=sim,
        assets=resolve_assets(sim),
        max_env_steps=max_env_steps or found.max_env_steps,
        fps=ENV_STEPS_PER_SECOND / sim.action_repeat,
        observation_space=spaces.Dict(
            {
                "image": spaces.Box(0, 255, (size, size, 3), np.uint8),
                "proprio": spaces.Box(-_PROPRIO_LIMIT, _PROPRIO_LIMIT, dtype=np.float32),
            }
        ),
        action_space=spaces.Box(-1.0, 1.0, (ACTION_DIM,), np.float32),
    )


def _named_start(options: dict[str, Any] | None) -> InitialState | None:
    name = (options or {}).get("initial_state")
    return None if name is None else parse_start(str(name))


def _draw(generator: np.random.Generator) -> InitialState:
    return InitialState("sampled", int(generator.integers(MAX_SEED + 1)))


def _mask(options: dict[str, Any] | None, num_envs: int) -> NDArray[np.bool_]:
    mask = (options or {}).get("reset_mask")
    if mask is None:
        return np.ones(num_envs, np.bool_)
    if not isinstance(mask, np.ndarray) or mask.shape != (num_envs,) or mask.dtype != np.bool_ or not mask.any():
        raise UsageError(f"reset_mask is {mask!r}; expected a boolean array of shape ({num_envs},), true somewhere")
    return mask


gymnasium.register(ID, entry_point=f"{__name__}:LiberoGymEnv", vector_entry_point=f"{__name__}:LiberoGymVectorEnv")
