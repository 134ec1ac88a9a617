"""Evaluation episodes as they are played: side by side, each with a random stream of its own, crashes counted apart.

An episode's draws come from its own seed, not from a generator shared with whatever runs beside it, and the policy always
acts on as many rows as there are environments, because the last bits of a matrix product depend on the number of rows. So
an episode is the same, to the last bit, whichever episodes run beside it, in whatever order, and after a crash of another.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from stages.errors import SimulatorError
from stages.reporting import Advance, Reporter, Silent
from stages.rewards.scorer import Scorer
from stages.store.groups import Score
from stages.types import ACTION_DIM, InitialState, Scene, VectorObservation

if TYPE_CHECKING:
    from stages.policy.policy import VLAPolicy
    from stages.sim.vector import VectorEnv

MOST_CRASHES = 0.1  # of the planned episodes; beyond, a rate over the others would no longer be one of the protocol


@dataclass(frozen=True)
class Plan:
    """An episode to be played."""

    start: InitialState
    repeat: int  # how often the start was played before, from 0
    seed: int  # of the sampled actions


@dataclass(frozen=True)
class Episode:
    """A played episode. A crashed one is neither success nor failure, and holds what was seen before the crash."""

    start: InitialState
    repeat: int
    seed: int
    success: bool
    crashed: bool
    initial_state: NDArray[np.float64]  # (S,) the settled start; empty when it crashed before
    decisions: Mapping[str, NDArray[Any]]  # by the names of the store's arrays, each (T, ...)

    @property
    def steps(self) -> int:
        """Environment steps (20 per second) until success, the limit or the crash."""
        return int(self.decisions["env_steps"].sum()) if self.decisions else 0

    @property
    def episode_return(self) -> float:
        return float(self.decisions["reward"].astype(np.float64).sum()) if self.decisions else 0.0

    @property
    def states(self) -> NDArray[np.float64]:
        """(steps, S) the MuJoCo state after each environment step, enough to film or replay it."""
        stored, steps = self.decisions["sim_state"], self.decisions["env_steps"]
        return np.concatenate([rows[:n] for rows, n in zip(stored, steps, strict=True)])


class TooManyCrashes(SimulatorError):
    """The simulator crashed in more than `MOST_CRASHES` of the planned episodes."""

    def __init__(self, message: str, episodes: list[Episode]) -> None:
        super().__init__(message)
        self.episodes = episodes  # those that had ended or crashed by then


@dataclass
class _Playing:
    """An episode in the making."""

    number: int
    plan: Plan
    generator: torch.Generator
    initial_state: NDArray[np.float64] | None = None
    initial_scene: Scene | None = None
    decisions: list[dict[str, Any]] = field(default_factory=list)
    scenes: list[Scene] = field(default_factory=list)
    steps: int = 0

    def end(self, score: Score, *, success: bool = False, crashed: bool = False) -> Episode:
        decisions: dict[str, NDArray[Any]] = {}
        if self.decisions:
            assert self.initial_scene is not None
            decisions = {name: np.stack([chosen[name] for chosen in self.decisions]) for name in self.decisions[0]}
            scenes = Scene.stack(self.scenes)[np.newaxis]
            reward, milestone = score(self.initial_scene, scenes, decisions["env_steps"][np.newaxis])
            decisions |= {"reward": reward[0], "milestone": milestone[0]}
        return Episode(
            self.plan.start,
            self.plan.repeat,
            self.plan.seed,
            success,
            crashed,
            np.zeros(0) if self.initial_state is None else self.initial_state,
            decisions,
        )


class _Game:
    """The environments and who plays in which."""

    def __init__(
        self, policy: "VLAPolicy", env: "VectorEnv", scorer: Scorer, temperature: float, max_env_steps: int
    ) -> None:
        self._policy, self._env = policy, env
        self._score = scorer.on(env.task.id, env.names, max_env_steps)
        self._temperature, self._max_env_steps = temperature, max_env_steps
        self._observation: VectorObservation | None = None
        self.playing: dict[int, _Playing] = {}  # by environment

    def start(self, waiting: deque[tuple[int, Plan]]) -> None:
        """Gives the next waiting episodes to free environments."""
        free = [n for n in range(self._env.num_envs) if n not in self.playing]
        joining = [n for n, _ in zip(free, range(len(waiting)), strict=False)]
        if not joining:
            return
        for n in joining:
            number, plan = waiting.popleft()
            generator = torch.Generator().manual_seed(plan.seed)
            self.playing[n] = _Playing(number, plan, generator)
        self._observation = self._env.reset([self.playing[n].plan.start for n in joining], joining)
        for n in joining:
            self.playing[n].initial_scene = self._observation.scene[n]
            self.playing[n].initial_state = self._observation.sim_state[n, 0].copy()

    def decide(self) -> list[tuple[int, Episode]]:
        """Takes a decision in every episode; returns the number of each that ended, with the episode."""
        before, env = self._observation, self._env
        assert before is not None
        uniform = torch.zeros(env.num_envs, ACTION_DIM, dtype=torch.float64)
        if self._temperature:
            for n, playing in self.playing.items():
                uniform[n] = torch.rand(ACTION_DIM, dtype=torch.float64, generator=playing.generator)
        acted = self._policy.act(before.image, before.proprio, env.task.language, self._temperature, uniform=uniform)
        active = np.isin(np.arange(env.num_envs), list(self.playing))
        after = env.step(np.where(active[:, None], acted.action, 0.0), active)
        self._observation = after
        ended = []
        for n, playing in list(self.playing.items()):
            chosen = {name: values[n] for name, values in asdict(acted).items()}
            playing.decisions.append(
                {
                    "action_token": chosen["tokens"],
                    "action": chosen["action"],
                    "log_prob": chosen["log_prob"],
                    "entropy": chosen["entropy"],
                    "env_steps": after.env_steps[n],
                    "sim_state": after.sim_state[n].copy(),
                }
            )
            playing.scenes.append(after.scene[n])
            playing.steps += int(after.env_steps[n])
            success = bool(after.scene.success[n])
            if success or playing.steps >= self._max_env_steps:
                del self.playing[n]
                ended.append((playing.number, playing.end(self._score, success=success)))
        return ended

    def crash(self, error: SimulatorError, waiting: deque[tuple[int, Plan]]) -> tuple[int, Episode]:
        """Ends the episode in which the simulator failed; the others wait for the restart, to begin again.

        Raises:
            SimulatorError: the failure is no single environment's, or the environments cannot be started again.
        """
        lost = self.playing.pop(error.environment, None) if error.environment is not None else None
        if lost is None:
            raise error
        waiting.extendleft(sorted(((other.number, other.plan) for other in self.playing.values()), reverse=True))
        self.playing.clear()
        self._env.restart()
        return lost.number, lost.end(self._score, crashed=True)


def play(
    policy: "VLAPolicy",
    env: "VectorEnv",
    scorer: Scorer,
    plans: Sequence[Plan],
    temperature: float,
    max_env_steps: int,
    reporter: Reporter | None = None,
    label: str = "eval",
) -> list[Episode]:
    """Plays the planned episodes and returns them in their order; a free environment takes the next one at once.

    When the simulator fails for good in one environment, its episode counts as crashed, all environments are started anew, and
    the other episodes that were under way begin again, which gives them again to the last bit.

    Args:
        policy: acts at `temperature`; 0 takes the likeliest tokens, and the plans' seeds do not matter.
        env: any number of environments; left open, with no episode under way.
        scorer: scores each episode at its end; left open.
        max_env_steps: when an episode without success ends.

    Raises:
        TooManyCrashes: more than a tenth of the plans; it carries the episodes that had ended.
        SimulatorError: a failure that is no single environment's own.
        MismatchError, RewardError: the reward is for another task, or its program failed.
    """
    reporter = reporter or Silent()
    waiting = deque(enumerate(plans))
    done: dict[int, Episode] = {}
    game = _Game(policy, env, scorer, temperature, max_env_steps)
    with reporter.bar(label, len(plans)) as advance:
        while waiting or game.playing:
            try:
                game.start(waiting)
                ended = game.decide()
            except SimulatorError as error:
                ended = [game.crash(error, waiting)]
                crashed = {**done, **dict(ended)}
                _refuse_crashes([crashed[number] for number in sorted(crashed)], len(plans), error)
                reporter.note(f"{error}; the episode from {ended[0][1].start} counts as crashed, the others go on")
            for number, episode in ended:
                done[number] = episode
                _tell(advance, list(done.values()))
    return [done[number] for number in range(len(plans))]


def _refuse_crashes(done: list[Episode], planned: int, last: SimulatorError) -> None:
    crashed = sum(episode.crashed for episode in done)
    if crashed > MOST_CRASHES * planned:
        raise TooManyCrashes(
            f"the simulator crashed in {crashed} of {planned} episodes, more than {MOST_CRASHES:.0%}, so there is no success "
            f"rate to speak of; the last time: {last}",
            done,
        )


def _tell(advance: Advance, done: Sequence[Episode]) -> None:
    crashed = sum(episode.crashed for episode in done)
    note = f"{sum(episode.success for episode in done)}/{len(done) - crashed} successful"
    advance(1, f"{note}, {crashed} crashed" if crashed else note)
