"""`tgrpo eval`: a checkpoint -> its success rate on initial states that training never saw, with an interval.

The official initial states are for evaluation only; training draws its own from LIBERO's placement sampler. Every
episode is kept, keyed by initial state, so that two evaluations can be compared state by state.
"""

import statistics
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from stages.algo.intervals import wilson
from stages.describe import describe
from stages.film import film_trajectories
from stages.params import Params
from stages.reporting import Reporter, Silent
from stages.rewards.scorer import Scorer
from stages.rewards.spec import RewardSpec
from stages.seeding import derive_seed
from stages.store.artifacts import atomic_directory, refuse_existing, write_json
from stages.store.handles import Handle
from stages.store.provenance import Manifest, reference, write_manifest
from stages.types import InitialState
from stages.workspace import next_path, open_checkpoint, open_env, open_policy, task_reward

if TYPE_CHECKING:
    from stages.policy.policy import VLAPolicy
    from stages.sim.vector import VectorEnv


@dataclass(frozen=True)
class Episode:
    """One evaluated episode. `steps` counts environment steps (20 per second) until success or the limit."""

    initial_state: str
    success: bool
    steps: int
    episode_return: float
    states: NDArray[np.float64]  # (steps, S) MuJoCo states, enough to film or replay it

    def row(self) -> dict[str, Any]:
        return {
            "initial_state": self.initial_state,
            "success": self.success,
            "env_steps": self.steps,
            "return": round(self.episode_return, 6),
        }


@dataclass(frozen=True)
class EvalSummary:
    """What an evaluation says, with the Wilson interval of the success rate."""

    episodes: int
    successes: int
    success_rate: float
    confidence: float
    low: float
    high: float
    mean_return: float
    mean_steps_to_success: float | None
    temperature: float

    def line(self) -> str:
        return (
            f"{self.successes}/{self.episodes} = {self.success_rate:.0%} "
            f"({self.confidence:.0%} Wilson interval {self.low:.0%} to {self.high:.0%})"
        )


def run_episodes(
    policy: "VLAPolicy",
    env: "VectorEnv",
    reward: RewardSpec,
    starts: Sequence[InitialState],
    temperature: float,
    seed: int,
    max_env_steps: int,
    reporter: Reporter | None = None,
) -> list[Episode]:
    """Plays one episode from each start, in the order given; a free environment takes the next start at once."""
    reporter = reporter or Silent()
    generator = torch.Generator().manual_seed(seed)
    count = min(env.num_envs, len(starts))
    waiting = deque(enumerate(starts))
    episodes: dict[int, Episode] = {}
    running: list[int | None] = [None] * env.num_envs  # the episode each environment plays
    states: list[list[NDArray[np.float64]]] = [[] for _ in range(env.num_envs)]
    returns = np.zeros(env.num_envs)
    scorers = [Scorer(reward, env.object_names) for _ in range(env.num_envs)]

    def start_next(envs: Sequence[int]) -> Any:
        assigned = [(n, *waiting.popleft()) for n in envs if waiting]
        for n, episode, _ in assigned:
            running[n], states[n], returns[n] = episode, [], 0.0
        if not assigned:
            return None
        observation = env.reset([start for _, _, start in assigned], [n for n, _, _ in assigned])
        for n, _, _ in assigned:
            scorers[n].reset(observation.scene[n])
        return observation

    with reporter.bar("eval", len(starts)) as advance:
        observation = start_next(range(count))
        while any(episode is not None for episode in running):
            active = np.array([episode is not None for episode in running])
            acted = policy.act(
                observation.image[active], observation.proprio[active], env.task.language, temperature, generator
            )
            actions = np.zeros((env.num_envs, acted.action.shape[1]))
            actions[active] = acted.action
            observation = env.step(actions, active)
            finished = []
            for n in np.flatnonzero(active):
                states[n].extend(observation.sim_state[n, : observation.env_steps[n]])
                step_reward, _ = scorers[n].score(observation.scene[n])
                returns[n] += float(step_reward)
                success = bool(observation.scene.success[n])
                if success or len(states[n]) >= max_env_steps:
                    episode = running[n]
                    assert episode is not None
                    running[n] = None
                    finished.append(int(n))
                    episodes[episode] = Episode(
                        str(starts[episode]), success, len(states[n]), float(returns[n]), np.stack(states[n])
                    )
                    rate = sum(done.success for done in episodes.values())
                    advance(1, f"{rate}/{len(episodes)} successful")
            observation = start_next(finished) or observation
    return [episodes[index] for index in range(len(starts))]


def summarise(episodes: Sequence[Episode], temperature: float) -> EvalSummary:
    """Counts successes; the interval is Wilson's at 95%."""
    successes = sum(episode.success for episode in episodes)
    low, high = wilson(successes, len(episodes))
    steps = [episode.steps for episode in episodes if episode.success]
    return EvalSummary(
        episodes=len(episodes),
        successes=successes,
        success_rate=successes / len(episodes),
        confidence=0.95,
        low=low,
        high=high,
        mean_return=statistics.fmean(episode.episode_return for episode in episodes),
        mean_steps_to_success=statistics.fmean(steps) if steps else None,
        temperature=temperature,
    )


def write_evaluation(
    out: Path,
    checkpoint: Path,
    episodes: Sequence[Episode],
    params: Params,
    overwrite: bool = False,
) -> Handle:
    """Writes the evaluation folder: summary.json, episodes.json, and films of the first episodes."""
    summary = summarise(episodes, params.eval.temperature)
    with atomic_directory(out, overwrite=overwrite) as folder:
        write_json(folder / "summary.json", asdict(summary))
        write_json(folder / "episodes.json", [episode.row() for episode in episodes])
        for episode in episodes[: params.eval.videos]:
            outcome = "success" if episode.success else "failure"
            name = f"{episode.initial_state.replace('/', '-')}-{outcome}.mp4"
            film_trajectories(params, [episode.states], folder / name)
        write_manifest(
            folder,
            Manifest(
                kind="eval",
                params=params.model_dump(include={"task", "sim", "eval"}),
                seed=params.seed,
                inputs={"checkpoint": reference(checkpoint, out)},
                details={"task": params.task},
            ),
        )
    return describe(out)


def evaluate_policy(
    policy: "VLAPolicy", env: "VectorEnv", params: Params, reporter: Reporter | None = None
) -> list[Episode]:
    """The core: `eval.episodes` episodes from the official initial states, in their order."""
    return run_episodes(
        policy,
        env,
        task_reward(params, env.object_names),
        [InitialState("official", index) for index in range(params.eval.episodes)],
        params.eval.temperature,
        derive_seed(params.seed, "eval"),
        params.eval.max_env_steps or env.task.max_env_steps,
        reporter,
    )


def evaluate_checkpoints(
    params: Params,
    checkpoints: Iterable[Path],
    out: Path | None = None,
    reporter: Reporter | None = None,
    overwrite: bool = False,
) -> Iterator[Handle]:
    """Evaluates each checkpoint as it arrives; yields the handle of each evaluation.

    Args:
        out: where the evaluation goes; None numbers it under data/evals.

    Raises:
        ArtifactError: no whole checkpoint, or something is at `out` already.
        MismatchError: the checkpoint was made for another image size or action repeat than params give.
    """
    for given in checkpoints:
        path = out or next_path("evals")
        refuse_existing(path, overwrite)
        fitted, checkpoint = open_checkpoint(params, given)
        policy = open_policy(fitted, checkpoint)
        with open_env(fitted, min(fitted.eval.envs, fitted.eval.episodes)) as env:
            episodes = evaluate_policy(policy, env, fitted, reporter)
        del policy  # the next one needs its memory
        yield write_evaluation(path, checkpoint, episodes, fitted, overwrite)
