"""`tgrpo demos`: the scripted expert -> demonstrations, each a group of one trajectory in the format of rollouts.

Start states come from LIBERO's placement sampler, never from the official ones, with an arm spread by `demos.arm_noise`.
While the expert approaches, noise is added to what it does, so that the demonstrations show how to recover; the label to
imitate is its clean action. Episodes that miss the goal are not kept.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stages.describe import describe
from stages.errors import TgrpoError
from stages.params import Params
from stages.reporting import Reporter, Silent
from stages.rewards.scorer import Scorer
from stages.seeding import derive_seed
from stages.sim.backends import choose_backend
from stages.sim.expert import PickPlaceExpert
from stages.store.groups import write_group
from stages.store.handles import Handle
from stages.store.schema import GroupAttrs
from stages.types import ACTION_DIM, InitialState, VectorObservation
from stages.workspace import next_path, open_env, task_objects, task_reward

if TYPE_CHECKING:
    from stages.sim.vector import VectorEnv

MOST_MISSES = 1.0  # episodes that may miss the goal for every one asked for, before the expert counts as unfit


@dataclass
class Attempt:
    """An episode of the expert in the making."""

    start: InitialState
    initial: VectorObservation
    rng: np.random.Generator
    expert: PickPlaceExpert
    decisions: list[dict[str, Any]] = field(default_factory=list)
    steps: int = 0
    success: bool = False


def demonstrate(env: "VectorEnv", params: Params, indices: list[int], limit: int) -> list[Attempt]:
    """The core: one attempt per index, side by side, each in its own environment from its own sampled start."""
    n = len(indices)
    starts = [InitialState("sampled", derive_seed(params.seed, "demo", index)) for index in indices]
    observation = env.reset(starts, list(range(n)))
    attempts = [
        Attempt(
            start,
            observation,
            np.random.default_rng(derive_seed(params.seed, "demo-noise", index)),
            PickPlaceExpert(env.object_names, *task_objects(env.object_names)),
        )
        for index, start in zip(indices, starts, strict=True)
    ]
    active = np.arange(env.num_envs) < n
    while active.any():
        label = np.zeros((env.num_envs, ACTION_DIM))
        action = np.zeros((env.num_envs, ACTION_DIM))
        for row in np.flatnonzero(active).tolist():
            attempt = attempts[row]
            label[row] = attempt.expert.act(observation.scene[row])
            noise = attempt.rng.normal(0.0, params.demos.noise, 3) if attempt.expert.phase == "approach" else 0.0
            action[row] = label[row]
            action[row, :3] = np.clip(label[row, :3] + noise, -1.0, 1.0)
        after = env.step(action, active)
        for row in np.flatnonzero(active).tolist():
            attempt = attempts[row]
            attempt.decisions.append(_decision(observation, after, action, label, row))
            attempt.steps += int(after.env_steps[row])
            attempt.success = bool(after.scene.success[row])
            active[row] = not attempt.success and attempt.steps < limit
        observation = after
    return attempts


def _decision(
    before: VectorObservation,
    after: VectorObservation,
    action: np.ndarray,
    label: np.ndarray,
    row: int,
) -> dict[str, Any]:
    """What the writer appends, with a trajectory axis of one. There is no policy, hence no token and no log-prob."""
    this = slice(row, row + 1)
    return {
        "mask": np.ones(1, np.bool_),
        "scene": after.scene[this],
        "image": before.image[this],
        "proprio": before.proprio[this],
        "action_token": np.zeros((1, ACTION_DIM), np.int32),
        "action": action[this],
        "action_label": label[this],
        "log_prob": np.zeros((1, ACTION_DIM), np.float32),
        "entropy": np.zeros((1, ACTION_DIM), np.float32),
        "env_steps": after.env_steps[this],
        "sim_state": after.sim_state[this],
    }


def demos(
    params: Params, out: Path | None = None, reporter: Reporter | None = None, overwrite: bool = False
) -> Iterator[Handle]:
    """Records `demos.episodes` successful demonstrations into the folder `out`; yields each handle when it is whole.

    Raises:
        UsageError: a task that the expert is not for.
        ArtifactError: a demonstration exists already and `overwrite` is false.
        TgrpoError: the expert misses the goal too often.
    """
    reporter = reporter or Silent()
    params = params.model_copy(update={"sim": params.sim.model_copy(update={"arm_noise": params.demos.arm_noise})})
    out = out or next_path("demos")
    wanted = params.demos.episodes
    workers = min(params.demos.workers, wanted)
    with (
        open_env(params, workers) as env,
        Scorer(task_reward(params, env)) as scorer,
        reporter.bar("demos", wanted) as advance,
    ):
        task_objects(env.object_names)
        limit = env.task.max_env_steps
        kept = tried = 0
        while kept < wanted:
            if tried - kept > MOST_MISSES * wanted:
                raise TgrpoError(
                    f"the expert reached the goal of {env.task.id} in {kept} of {tried} episodes; "
                    "lower demos.noise or choose a task it can do (see docs/assets.md)"
                )
            attempts = demonstrate(env, params, list(range(tried, tried + workers)), limit)
            tried += len(attempts)
            for attempt in attempts:
                if attempt.success and kept < wanted:
                    path = out / f"{kept:03d}.zarr"
                    _write(path, attempt, attempts.index(attempt), env, scorer, params, overwrite)
                    kept += 1
                    advance(1, f"{kept} of {tried} reached the goal")
                    yield describe(path)


def _write(
    path: Path, attempt: Attempt, row: int, env: "VectorEnv", scorer: Scorer, params: Params, overwrite: bool
) -> None:
    attrs = GroupAttrs(
        task=env.task.id,
        instruction=env.task.language,
        **vars(env.names),
        initial_state=str(attempt.start),
        labels=(),
        action_repeat=params.sim.action_repeat,
        image_size=params.sim.image_size,
        temperature=0.0,
        stop="each",
        max_env_steps=env.task.max_env_steps,
        seed=params.seed,
        iteration=None,
        inputs={},
        params={
            **params.model_dump(include={"sim", "demos"}),
            "reward": scorer.reward.to_json(),
            "assets": {"kind": env.assets.kind, "digest": env.assets.digest},
            "renderer": choose_backend(params.sim.renderer),
        },
    )
    with write_group(
        path,
        attrs,
        trajectories=1,
        initial_state=attempt.initial.sim_state[row, 0],
        initial_scene=attempt.initial.scene[row],
        score=scorer.on(env.task.id, env.names, env.task.max_env_steps),
        overwrite=overwrite,
    ) as writer:
        for decision in attempt.decisions:
            writer.append(**decision)
