"""The core of `tgrpo rollout`: the policy acts in environments that start alike, and a group takes down what happens.

The first half of Algorithm 1's iteration. The reward is found when a group is complete: nothing in the acting depends on
it. Several groups can be under way at once, each in environments of its own, so
that no processor waits for the last trajectory of a group. What a group holds does not depend on that: its policy
calls, its random numbers and its environments are its own.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from stages.describe import describe
from stages.params import Params
from stages.reporting import Reporter, Silent
from stages.rewards.scorer import Scorer
from stages.seeding import derive_seed
from stages.sim.backends import choose_backend
from stages.store.groups import write_group
from stages.store.handles import Handle
from stages.store.schema import GroupAttrs
from stages.types import ACTION_DIM, InitialState
from stages.workspace import open_env

if TYPE_CHECKING:
    from stages.policy.policy import VLAPolicy
    from stages.sim.vector import VectorEnv


@dataclass(frozen=True)
class Wanted:
    """A group to sample: its index within the iteration, where it goes, and what it is made from, by digest."""

    index: int
    out: Path
    inputs: dict[str, dict[str, str]]


def open_sampling_env(params: Params) -> "VectorEnv":
    """Environments for `rollout.parallel` groups at once."""
    p = params.rollout
    return open_env(params, p.envs * min(p.parallel, p.groups))


def sample_groups(
    policy: "VLAPolicy",
    env: "VectorEnv",
    scorer: Scorer,
    params: Params,
    wanted: Sequence[Wanted],
    *,
    iteration: int,
    overwrite: bool = False,
    reporter: Reporter | None = None,
) -> Iterator[Handle]:
    """Samples groups of `rollout.envs` trajectories, as many at once as `env` has room for; yields them in order.

    Raises:
        ArtifactError: a path exists and `overwrite` is false.
        MismatchError: the reward is for another task.
        RewardError: its program failed; the group at whose end it did is not kept.
        SimulatorError: the simulator failed for good; the decisions so far are kept apart (see `write_group`).
    """
    size = params.rollout.envs
    if env.num_envs < size:
        raise ValueError(
            f"{env.num_envs} environments for groups of {size} trajectories; expected rollout.envs or more"
        )
    blocks = [np.arange(at, at + size) for at in range(0, env.num_envs - size + 1, size)]
    waiting = list(wanted)
    running: dict[int, _GroupUnderWay] = {}  # by block
    done: dict[int, Handle] = {}  # by index, until it is their turn
    told = 0
    with ExitStack() as stack, (reporter or Silent()).bar("rollout", size * len(wanted)) as advance:

        def start(block: int) -> None:
            group = _GroupUnderWay(policy, env, blocks[block], scorer, params, waiting.pop(0), iteration, overwrite)
            running[block] = stack.enter_context(group)
            group.act()

        for block in range(min(len(blocks), len(waiting))):
            start(block)
        while running:
            # While one group's environments run, the policy decides for another.
            for block, group in list(running.items()):
                ended = group.observe()
                advance(ended, f"{sum(other.successes for other in running.values())} successful of those under way")
                if group.active.any():
                    group.act()
                    continue
                group.__exit__(None, None, None)
                done[group.wanted.index] = describe(group.wanted.out)
                del running[block]
                if waiting:
                    start(block)
            while told < len(wanted) and wanted[told].index in done:
                yield done.pop(wanted[told].index)
                told += 1


class _GroupUnderWay:
    """One group while its trajectories run, in the environments `slots`. Within `with`, its file is being written."""

    def __init__(
        self,
        policy: "VLAPolicy",
        env: "VectorEnv",
        slots: NDArray[np.int64],
        scorer: Scorer,
        params: Params,
        wanted: Wanted,
        iteration: int,
        overwrite: bool,
    ) -> None:
        p = params.rollout
        self.slots = slots
        self.wanted = wanted
        self.active = np.ones(len(slots), np.bool_)
        self.successes = 0
        self._policy = policy
        self._env = env
        self._language = env.task.language
        self._temperature = p.temperature
        self._stop = p.stop
        self._limit = p.max_env_steps or env.task.max_env_steps
        start = InitialState("sampled", derive_seed(params.seed, "start", iteration, wanted.index))
        self._generator = torch.Generator().manual_seed(derive_seed(params.seed, "rollout", iteration, wanted.index))
        self._seen = env.reset([start] * len(slots), slots.tolist())[slots]
        self._steps = np.zeros(len(slots), np.int64)
        attrs = GroupAttrs(
            task=env.task.id,
            instruction=env.task.language,
            **vars(env.names),
            initial_state=str(start),
            labels=(),
            action_repeat=params.sim.action_repeat,
            image_size=params.sim.image_size,
            temperature=p.temperature,
            stop=p.stop,
            max_env_steps=self._limit,
            seed=params.seed,
            iteration=iteration,
            inputs=wanted.inputs,
            params={
                **params.model_dump(
                    include={
                        "sim": True,
                        "rollout": {"envs", "groups", "temperature", "max_env_steps", "stop"},
                        "policy": {"dtype", "center_crop", "sampling"},
                    }
                ),
                "reward": scorer.reward.to_json(),
                "assets": {"kind": env.assets.kind, "digest": env.assets.digest},
                "renderer": choose_backend(params.sim.renderer),
            },
        )
        self._file = write_group(
            wanted.out,
            attrs,
            trajectories=len(slots),
            initial_state=self._seen.sim_state[0, 0],
            initial_scene=self._seen.scene[0],
            score=scorer.on(env.task.id, env.names, self._limit),
            overwrite=overwrite,
        )
        self._open = False

    def __enter__(self) -> "_GroupUnderWay":
        self._writer = self._file.__enter__()
        self._open = True
        return self

    def __exit__(self, *error: object) -> None:
        if self._open:
            self._open = False
            self._file.__exit__(*error)  # type: ignore[arg-type]

    def act(self) -> None:
        """Samples an action for every trajectory that still runs, and starts them."""
        seen, active = self._seen, self.active
        acted = asdict(
            self._policy.act(
                seen.image[active], seen.proprio[active], self._language, self._temperature, self._generator
            )
        )
        self._decision = {name: np.zeros((len(active), ACTION_DIM), rows.dtype) for name, rows in acted.items()}
        for name, rows in acted.items():
            self._decision[name][active] = rows
        actions = np.zeros((self._env.num_envs, ACTION_DIM))
        stepped = np.zeros(self._env.num_envs, np.bool_)
        actions[self.slots], stepped[self.slots] = self._decision["action"], active
        self._wait = self._env.start_step(actions, stepped)

    def observe(self) -> int:
        """Waits for what the actions lead to and writes it down; returns how many trajectories ended with it."""
        after = self._wait()[self.slots]
        active = self.active
        self._writer.append(
            mask=active,
            scene=after.scene,
            image=self._seen.image,
            proprio=self._seen.proprio,
            action_token=self._decision["tokens"],
            action=self._decision["action"],
            action_label=self._decision["action"],
            log_prob=self._decision["log_prob"],
            entropy=self._decision["entropy"],
            env_steps=after.env_steps,
            sim_state=after.sim_state,
        )
        self._steps += np.where(active, after.env_steps, 0)
        success = active & after.scene.success
        # The paper ends all trajectories with the first success, so that they share one length.
        over = active if self._stop == "first" and success.any() else success | (active & (self._steps >= self._limit))
        self.active = active & ~over
        self.successes += int(success.sum())
        self._seen = after
        return int(over.sum())
