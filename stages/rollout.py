"""`tgrpo rollout`: checkpoint + reward -> trajectory groups.

The first half of Algorithm 1's iteration: G environments start from one initial state of LIBERO's placement sampler, the
policy samples an action for each, and the reward program scores every state that follows. The group is on disk while it
grows and valid when whole. Seeds depend on the run's seed, the checkpoint's iteration and the group's index alone.
"""

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from stages.describe import describe
from stages.errors import UsageError
from stages.params import Params
from stages.reporting import Reporter, Silent
from stages.rewards.scorer import Scorer
from stages.rewards.spec import RewardSpec
from stages.seeding import derive_seed
from stages.sim.backends import choose_backend
from stages.store.groups import write_group
from stages.store.handles import Handle
from stages.store.provenance import reference
from stages.store.schema import GroupAttrs
from stages.types import ACTION_DIM, InitialState
from stages.workspace import next_path, open_checkpoint, open_env, open_policy, read_checkpoint, task_reward

if TYPE_CHECKING:
    from stages.policy.policy import VLAPolicy
    from stages.sim.vector import VectorEnv


def sample_group(
    policy: "VLAPolicy",
    env: "VectorEnv",
    reward: RewardSpec,
    params: Params,
    *,
    iteration: int,
    index: int,
    inputs: dict[str, dict[str, str]],
    out: Path,
    overwrite: bool = False,
    reporter: Reporter | None = None,
) -> Handle:
    """The core: samples group `index` of an iteration with all of `env` and writes it to `out`.

    Raises:
        ArtifactError: `out` exists and `overwrite` is false.
        SimulatorError: the simulator failed for good; the decisions so far are kept apart (see `write_group`).
    """
    p = params.rollout
    limit = p.max_env_steps or env.task.max_env_steps
    start = InitialState("sampled", derive_seed(params.seed, "start", iteration, index))
    generator = torch.Generator().manual_seed(derive_seed(params.seed, "rollout", iteration, index))
    scorer = Scorer(reward, env.object_names)
    observation = env.reset([start] * env.num_envs)
    scorer.reset(observation.scene)
    attrs = GroupAttrs(
        task=env.task.id,
        instruction=env.task.language,
        object_names=env.object_names,
        target=reward.target,
        container=reward.container,
        initial_state=str(start),
        action_repeat=params.sim.action_repeat,
        image_size=params.sim.image_size,
        temperature=p.temperature,
        stop=p.stop,
        seed=params.seed,
        iteration=iteration,
        inputs=inputs,
        params={
            **params.model_dump(include={"sim": True, "rollout": True, "policy": {"dtype", "center_crop", "sampling"}}),
            "reward": reward.to_json(),
            "assets": {"kind": env.assets.kind, "digest": env.assets.digest},
            "renderer": choose_backend(params.sim.renderer),
        },
    )
    with (
        (reporter or Silent()).bar(f"group {index}", -(-limit // params.sim.action_repeat)) as advance,
        write_group(
            out,
            attrs,
            trajectories=env.num_envs,
            initial_state=observation.sim_state[0, 0],
            initial_scene=observation.scene[0],
            overwrite=overwrite,
        ) as writer,
    ):
        active = np.ones(env.num_envs, np.bool_)
        steps = np.zeros(env.num_envs, np.int64)
        while active.any():
            acted = policy.act(
                observation.image[active], observation.proprio[active], env.task.language, p.temperature, generator
            )
            decision = {
                name: np.zeros((env.num_envs, ACTION_DIM), values.dtype) for name, values in asdict(acted).items()
            }
            for name, values in asdict(acted).items():
                decision[name][active] = values
            after = env.step(decision["action"], active)
            step_reward, milestone = scorer.score(after.scene)
            writer.append(
                mask=active,
                scene=after.scene,
                image=observation.image,
                proprio=observation.proprio,
                action_token=decision["tokens"],
                action=decision["action"],
                action_label=decision["action"],
                log_prob=decision["log_prob"],
                entropy=decision["entropy"],
                reward=step_reward,
                milestone=milestone,
                env_steps=after.env_steps,
                sim_state=after.sim_state,
            )
            steps += np.where(active, after.env_steps, 0)
            done = after.scene.success | (steps >= limit)
            # The paper ends all trajectories with the first success, so that they share one length.
            active = active & ~done if p.stop == "each" or not (active & after.scene.success).any() else active & False
            observation = after
            advance(1, f"{int(after.scene.success.sum())} of {env.num_envs} successful")
    return describe(out)


def rollout(
    params: Params,
    checkpoint: Path,
    reward: Path | None = None,
    out: Path | None = None,
    reporter: Reporter | None = None,
    overwrite: bool = False,
) -> Iterator[Handle]:
    """Samples `rollout.groups` groups of `rollout.envs` trajectories; yields each handle as soon as its group is whole.

    Args:
        out: the path of the group when it ends in .zarr, else the folder for the groups; None numbers them under
            data/groups.

    Raises:
        ArtifactError, MismatchError: see `open_policy`, `task_reward`.
        SimulatorError: the simulator cannot start.
    """
    params, checkpoint = open_checkpoint(params, checkpoint)
    iteration = read_checkpoint(checkpoint).details["iteration"] + 1
    policy = open_policy(params, checkpoint)
    with open_env(params, params.rollout.envs) as env:
        spec = task_reward(params, env.object_names, reward)
        for index in range(params.rollout.groups):
            path = group_path(out, index, params.rollout.groups)
            yield sample_group(
                policy,
                env,
                spec,
                params,
                iteration=iteration,
                index=index,
                inputs=group_inputs(path, checkpoint, reward),
                out=path,
                overwrite=overwrite,
                reporter=reporter,
            )


def group_path(out: Path | None, index: int, groups: int) -> Path:
    """Where a group goes: `out` itself when that ends in .zarr, else a numbered name in the folder `out`.

    Raises:
        UsageError: several groups for one name.
    """
    if out is None:
        return next_path("groups", ".zarr")
    if out.suffix != ".zarr":
        return out / f"{index:03d}.zarr"
    if groups > 1:
        raise UsageError(f"--out {out} names one group, but {groups} are asked for; add --groups 1 or name a folder")
    return out


def group_inputs(path: Path, checkpoint: Path, reward: Path | None) -> dict[str, dict[str, str]]:
    """What a group is made from, by digest."""
    inputs = {"checkpoint": reference(checkpoint, path)}
    return inputs | {"reward": reference(reward, path)} if reward else inputs
