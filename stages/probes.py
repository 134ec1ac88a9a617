"""Probe trajectories: recorded once for a task, so that every reward program is verified on the same ones, by scoring alone."""

import ast
import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from stages.errors import TgrpoError
from stages.params import Params
from stages.reporting import Reporter, Silent
from stages.rewards.program import Reward
from stages.seeding import derive_seed
from stages.sim.backends import choose_backend
from stages.store.artifacts import atomic_directory, digest_of
from stages.store.groups import write_group
from stages.store.provenance import Manifest, package_versions, read_manifest, reference, write_manifest
from stages.store.schema import GroupAttrs
from stages.types import ACTION_DIM, InitialState, Scene, Task
from stages.workspace import DATA, open_checkpoint, open_policy

if TYPE_CHECKING:
    from stages.policy.policy import VLAPolicy
    from stages.sim.env import LiberoEnv
    from stages.sim.probe_scripts import ExpertRun
    from stages.sim.skills import Steps

STARTS = 2  # initial states
_SPARE = 4  # that may be tried besides, where the expert misses the goal
POLICY_EPISODES = 4  # for each start, of the checkpoint
POLICY = "policy"
_NO_IMAGE = np.zeros((0, 0, 3), np.uint8)
_UNREWARDED = "def compute_reward(state, info):\n    return 0.0\n"
_SCRIPTS = (
    "probe_scripts",
    "skills",
    "scripts",
    "expert",
    "hand",
)  # of stages/sim: what they say decides the recordings


def ensure_probes(params: Params, checkpoint: Path | None = None, reporter: Reporter | None = None) -> Path:
    """The folder of the task's probe trajectories under data/probes; they are recorded unless they are there.

    Raises:
        as `record_probes`.
    """
    path = probes_path(params, checkpoint)
    if not path.exists():
        record_probes(params, path, checkpoint, reporter)
    return path


def probes_path(params: Params, checkpoint: Path | None = None) -> Path:
    """Where the probes of these params lie: named by the task and by a digest of all that decides what they are."""
    from stages.sim.assets import resolve_assets

    if checkpoint is not None:
        params, checkpoint = open_checkpoint(params, checkpoint)
    folder = Path(__file__).parent
    scripts = [folder / "sim" / f"{name}.py" for name in _SCRIPTS] + [Path(__file__)]
    decided_by = {
        "params": _recorded_params(params),
        "seed": params.seed,
        "assets": resolve_assets(params.sim).digest,
        "checkpoint": digest_of(checkpoint) if checkpoint else None,
        "scripts": [_code_digest(script) for script in scripts],
        "versions": {name: version for name, version in package_versions().items() if name != "tgrpo"},
    }
    digest = hashlib.sha256(json.dumps(decided_by, sort_keys=True).encode()).hexdigest()
    return DATA / "probes" / f"{params.task.replace('/', '-')}-{digest[:12]}"


def _code_digest(path: Path) -> str:
    """Of what a module does: comments and layout do not count."""
    return hashlib.sha256(ast.dump(ast.parse(path.read_text(encoding="utf-8"))).encode()).hexdigest()


def record_probes(
    params: Params, out: Path, checkpoint: Path | None = None, reporter: Reporter | None = None
) -> list[Path]:
    """Records the probes of the params' task as groups 000.zarr, 001.zarr ..., one for each start; rewards are zero.

    All trajectories of a group start alike, and `labels` say what they are. One decision lasts `sim.action_repeat` environment
    steps, so rewards are read when those of a rollout are. A script may act anew at each step of a decision; `action` is then
    their mean. A trajectory ends with success or after `rollout.max_env_steps`. No images are kept: rewards read the state, and
    drawing would cost more than all physics; `tgrpo replay --render` draws them from the states.

    Args:
        out: a folder; it appears when all is recorded.
        checkpoint: of a policy, whose own episodes are recorded as well.

    Returns:
        the groups' paths.

    Raises:
        TgrpoError: the expert misses the goal from too many starts.
        TaskError: the task has no expert.
        ArtifactError: something lies at `out`, or no whole checkpoint.
    """
    from stages.sim.assets import resolve_assets
    from stages.sim.env import LiberoEnv
    from stages.sim.tasks import load_task

    reporter = reporter or Silent()
    inputs: dict[str, dict[str, str]] = {}
    policy = None
    if checkpoint is not None:
        params, checkpoint = open_checkpoint(params, checkpoint)
        policy = open_policy(params, checkpoint)
        inputs = {"checkpoint": reference(checkpoint, out / "000.zarr")}
    task, assets = load_task(params.task), resolve_assets(params.sim)
    env = LiberoEnv(task, params.sim, assets)
    try:
        with atomic_directory(out) as folder:
            written: list[Recording] = []
            missed: list[str] = []
            recorded = {**_recorded_params(params), "assets": {"kind": assets.kind, "digest": assets.digest}}
            for start in starts(params):
                if len(written) == STARTS:
                    break
                recording = Recording(env, start, params)
                if not recording.expert():
                    missed.append(str(start))
                    reporter.note(f"the expert of {task.id} missed the goal from {start}; that start is left out")
                    continue
                recording.all(reporter, f"probes {len(written) + 1}/{STARTS}", policy)
                recording.write(folder / f"{len(written):03d}.zarr", inputs, recorded)
                written.append(recording)
            if not written:
                raise TgrpoError(
                    f"the expert of {task.id} reached the goal from none of {len(missed)} starts within "
                    f"{step_limit(params, task)} steps, so no reward can be verified; give it more with --set "
                    "rollout.max_env_steps=0, or see docs/assets.md"
                )
            details = {
                "task": task.id,
                "starts": [str(recording.start) for recording in written],
                "expert_missed": missed,
                "kinds": {t.label: t.kind for recording in written for t in recording.trajectories},
            }
            write_manifest(folder, Manifest("probes", recorded, params.seed, inputs, details))
    finally:
        env.close()
    return probe_groups(out)


def probe_groups(folder: Path) -> list[Path]:
    """The groups of recorded probes.

    Raises:
        ArtifactError: no whole artifact of probes.
    """
    read_manifest(folder, "probes")
    return sorted(folder.glob("[0-9][0-9][0-9].zarr"))


def _recorded_params(params: Params) -> dict[str, Any]:
    return params.model_dump(
        include={
            "task": True,
            "sim": True,
            "rollout": {"max_env_steps"},
            "policy": {"dtype", "center_crop", "sampling"},
        }
    )


def starts(params: Params) -> Iterator[InitialState]:
    for index in range(STARTS + _SPARE):
        yield InitialState("sampled", derive_seed(params.seed, "probe", index))


def step_limit(params: Params, task: Task) -> int:
    return params.rollout.max_env_steps or task.max_env_steps


class Actor(Protocol):
    """What acts in one trajectory."""

    def decide(self, env: "LiberoEnv") -> dict[str, NDArray[Any]]:
        """Looks, at the beginning of a decision; what a policy leaves behind: token, log_prob and entropy (7,)."""

    def act(self) -> NDArray[np.float64]:
        """The action (7,) of the next environment step."""


class Scripted:
    """A script; where it ends the hand stands still, with its gripper as it is."""

    def __init__(self, steps: "Steps") -> None:
        self._steps = steps
        self._still = np.array([0.0] * (ACTION_DIM - 1) + [-1.0])

    def decide(self, env: "LiberoEnv") -> dict[str, NDArray[Any]]:
        return {"token": np.zeros(ACTION_DIM, np.int32)} | dict.fromkeys(
            ("log_prob", "entropy"), np.zeros(ACTION_DIM, np.float32)
        )

    def act(self) -> NDArray[np.float64]:
        action = next(self._steps, self._still)
        self._still[-1] = action[-1]
        return action.copy()


class Sampled:
    """A policy that samples at temperature 1."""

    def __init__(self, policy: "VLAPolicy", language: str, seed: int) -> None:
        import torch

        self._policy, self._language = policy, language
        self._generator = torch.Generator().manual_seed(seed)

    def decide(self, env: "LiberoEnv") -> dict[str, NDArray[Any]]:
        image, proprio = np.ascontiguousarray(env.render()[None]), env.proprio()[None]
        acted = self._policy.act(image, proprio, self._language, 1.0, self._generator)
        self._action = np.asarray(acted.action[0], np.float64)
        return {"token": acted.tokens[0], "log_prob": acted.log_prob[0], "entropy": acted.entropy[0]}

    def act(self) -> NDArray[np.float64]:
        return self._action


@dataclass
class Trajectory:
    """One recorded trajectory."""

    label: str
    kind: str
    decisions: list[dict[str, Any]] = field(default_factory=list)
    success: bool = False


class Recording:
    """All trajectories from one start, in one environment of this process."""

    def __init__(self, env: "LiberoEnv", start: InitialState, params: Params) -> None:
        self.start = start
        self.trajectories: list[Trajectory] = []
        self._env, self._params = env, params
        self._limit = step_limit(params, env.task)
        env.reset(start)
        self._snapshot, self._state, self._scene = env.snapshot(), env.state(), env.scene()
        self._run: ExpertRun | None = None

    def expert(self) -> bool:
        """Records the expert's run; whether it reached the goal."""
        from stages.sim.probe_scripts import EXPERT, ExpertRun, expert_steps

        actions: list[NDArray[np.float64]] = []
        scenes = [self._scene]

        def seen(action: NDArray[np.float64]) -> None:
            actions.append(action)
            scenes.append(self._env.scene())

        self._env.restore(self._snapshot)
        expert = self._play(EXPERT, "success_expected", Scripted(expert_steps(self._env)), seen)
        self._run = ExpertRun(np.stack(actions), Scene.stack(scenes), expert.success)
        return expert.success

    def all(self, reporter: Reporter, title: str, policy: "VLAPolicy | None") -> None:
        """Records every probe, and episodes of the policy."""
        from stages.sim.probe_scripts import probes

        assert self._run is not None
        scripts = probes(self._env, self._run)
        episodes = POLICY_EPISODES if policy else 0
        with reporter.bar(title, 1 + len(scripts) + episodes) as advance:
            advance(1, "expert")
            for probe in scripts:
                rng = np.random.default_rng(derive_seed(self._params.seed, "probe", str(self.start), probe.label))
                self._env.restore(self._snapshot)
                self._play(probe.label, probe.kind, Scripted(probe.make(self._env, rng)))
                advance(1, probe.label)
            for index in range(episodes):
                assert policy is not None
                seed = derive_seed(self._params.seed, "probe", str(self.start), POLICY, index)
                self._env.restore(self._snapshot)
                self._play(f"{POLICY} {index + 1}", "either", Sampled(policy, self._env.task.language, seed))
                advance(1, POLICY)

    def write(self, path: Path, inputs: dict[str, dict[str, str]], params: dict[str, Any]) -> None:
        """Writes the group."""
        env = self._env
        attrs = GroupAttrs(
            task=env.task.id,
            instruction=env.task.language,
            **vars(env.names),
            initial_state=str(self.start),
            labels=tuple(trajectory.label for trajectory in self.trajectories),
            action_repeat=self._params.sim.action_repeat,
            image_size=len(_NO_IMAGE),
            temperature=1.0 if inputs else 0.0,
            stop="each",
            max_env_steps=self._limit,
            seed=self._params.seed,
            iteration=None,
            inputs=inputs,
            params={
                **params,
                "reward": Reward(env.task.id, _UNREWARDED).to_json(),
                "renderer": choose_backend(self._params.sim.renderer),
            },
        )
        with write_group(
            path,
            attrs,
            trajectories=len(self.trajectories),
            initial_state=self._state,
            initial_scene=self._scene,
            score=lambda initial, scenes, env_steps: (
                np.zeros(env_steps.shape, np.float32),
                np.zeros(env_steps.shape, np.int8),
            ),
        ) as writer:
            for t in range(max(len(trajectory.decisions) for trajectory in self.trajectories)):
                rows = [trajectory.decisions[min(t, len(trajectory.decisions) - 1)] for trajectory in self.trajectories]
                writer.append(
                    mask=np.array([t < len(trajectory.decisions) for trajectory in self.trajectories]),
                    scene=Scene.stack([row["scene"] for row in rows]),
                    **{name: np.stack([row[name] for row in rows]) for name in rows[0] if name != "scene"},
                )

    def _play(
        self, label: str, kind: str, actor: Actor, seen: Callable[[NDArray[np.float64]], None] = lambda action: None
    ) -> Trajectory:
        """Records one trajectory from the environment's present state."""
        env, repeat = self._env, self._params.sim.action_repeat
        trajectory = Trajectory(label, kind)
        steps = 0
        while not trajectory.success and steps < self._limit:
            proprio, decided = env.proprio(), actor.decide(env)
            actions: list[NDArray[np.float64]] = []
            states: list[NDArray[np.float64]] = []
            while not trajectory.success and len(actions) < repeat:
                actions.append(actor.act())
                trajectory.success = env.step(actions[-1])
                states.append(env.state())
                seen(actions[-1])
            steps += len(actions)
            action = np.mean(actions, axis=0)
            trajectory.decisions.append(
                {
                    "scene": env.scene(),
                    "image": _NO_IMAGE,
                    "proprio": proprio,
                    "action_token": decided["token"],
                    "action": action,
                    "action_label": action,
                    "log_prob": decided["log_prob"],
                    "entropy": decided["entropy"],
                    "env_steps": np.int16(len(actions)),
                    "sim_state": np.stack(states + [states[-1]] * (repeat - len(states))),
                }
            )
        self.trajectories.append(trajectory)
        return trajectory
