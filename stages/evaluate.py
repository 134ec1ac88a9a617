"""`tgrpo eval`: a checkpoint -> its success rate on initial states that training never saw, with an interval.

The official initial states are for evaluation only, and the validation states are a stream of LIBERO's placement sampler
that nothing is trained on either; a checkpoint that was trained on one of the states is refused. Every episode is kept,
keyed by its initial state, so that two evaluations can be compared state by state (`tgrpo compare`).
"""

import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from stages.algo.intervals import wilson
from stages.describe import describe
from stages.episodes import Episode, Plan, TooManyCrashes, play
from stages.film import film_trajectories
from stages.lineage import refuse_trained_on
from stages.params import Params
from stages.reporting import Reporter
from stages.rewards.program import Reward
from stages.rewards.scorer import Scorer
from stages.seeding import derive_seed
from stages.sim.backends import choose_backend
from stages.store.artifacts import atomic_directory, refuse_existing, write_json
from stages.store.episodes import EpisodesAttrs, write_episodes
from stages.store.handles import Handle
from stages.store.provenance import Manifest, reference, write_manifest
from stages.types import InitialState
from stages.workspace import next_path, open_checkpoint, open_env, open_policy, require_fit, task_reward

if TYPE_CHECKING:
    from stages.policy.policy import VLAPolicy
    from stages.sim.vector import VectorEnv

Starts = Literal["official", "validation"]


@dataclass(frozen=True)
class EvalSummary:
    """What an evaluation says, with the Wilson interval of the success rate. Crashed episodes are in `crashes` alone."""

    episodes: int  # that count in the rate: all repeats together, without the crashed ones
    successes: int
    success_rate: float
    confidence: float
    low: float
    high: float
    crashes: int
    mean_return: float
    mean_steps_to_success: float | None
    temperature: float
    starts: Starts
    repeats: int


def rate_line(summary: Mapping[str, Any]) -> str:
    """`35/49 = 71% (95% Wilson interval 58% to 82%), 1 crashed`, from the fields of an `EvalSummary`."""
    crashed = f", {summary['crashes']} crashed" if summary["crashes"] else ""
    return (
        f"{summary['successes']}/{summary['episodes']} = {summary['success_rate']:.0%} "
        f"({summary['confidence']:.0%} Wilson interval {summary['low']:.0%} to {summary['high']:.0%}){crashed}"
    )


def start_states(starts: Starts, episodes: int, seed: int) -> list[InitialState]:
    """The official states 0..episodes-1, or as many draws of the sampler from a stream that training does not use."""
    if starts == "official":
        return [InitialState("official", index) for index in range(episodes)]
    return [InitialState("sampled", derive_seed(seed, "validation", index)) for index in range(episodes)]


def plan_episodes(starts: Sequence[InitialState], repeats: int, seed: int) -> list[Plan]:
    """Each start once for every repeat. Seeds depend on the run's seed, the start and the repeat alone, so that two
    checkpoints are evaluated on the same pairs of state and seed."""
    return [
        Plan(start, repeat, derive_seed(seed, "eval", str(start), repeat))
        for repeat in range(repeats)
        for start in starts
    ]


def evaluate_policy(
    policy: "VLAPolicy", env: "VectorEnv", scorer: Scorer, params: Params, reporter: Reporter | None = None
) -> list[Episode]:
    """The core: `eval.episodes` start states, `eval.repeats` times over where actions are sampled, in that order.

    Raises:
        TooManyCrashes, SimulatorError: as `play`.
    """
    p = params.eval
    starts = start_states(p.starts, p.episodes, params.seed)
    plans = plan_episodes(starts, p.repeats if p.temperature else 1, params.seed)
    return _play(policy, env, scorer, params, plans, p.temperature, reporter, "eval")


def validate(
    policy: "VLAPolicy", env: "VectorEnv", scorer: Scorer, params: Params, reporter: Reporter | None = None
) -> EvalSummary:
    """Success on the validation states, by `train.validation`: what training may look at while it runs.

    The states and the sampling seeds are the same every time, so the checkpoints of a run are judged alike.

    Args:
        env: any number of environments of the params' task; left open.
        scorer: left open.

    Raises:
        TooManyCrashes, SimulatorError: as `play`.
    """
    p = params.train.validation
    plans = plan_episodes(start_states("validation", p.episodes, params.seed), 1, params.seed)
    return summarise(_play(policy, env, scorer, params, plans, p.temperature, reporter, "validate"), p.temperature)


def _play(
    policy: "VLAPolicy",
    env: "VectorEnv",
    scorer: Scorer,
    params: Params,
    plans: Sequence[Plan],
    temperature: float,
    reporter: Reporter | None,
    label: str,
) -> list[Episode]:
    limit = params.eval.max_env_steps or env.task.max_env_steps
    return play(policy, env, scorer, plans, temperature, limit, reporter, label)


def summarise(episodes: Sequence[Episode], temperature: float) -> EvalSummary:
    """Counts successes among the episodes that did not crash, at least one; the interval is Wilson's at 95%."""
    counted = [episode for episode in episodes if not episode.crashed]
    successes = sum(episode.success for episode in counted)
    low, high = wilson(successes, len(counted))
    steps = [episode.steps for episode in counted if episode.success]
    return EvalSummary(
        episodes=len(counted),
        successes=successes,
        success_rate=successes / len(counted),
        confidence=0.95,
        low=low,
        high=high,
        crashes=len(episodes) - len(counted),
        mean_return=statistics.fmean(episode.episode_return for episode in counted),
        mean_steps_to_success=statistics.fmean(steps) if steps else None,
        temperature=temperature,
        starts="official" if episodes[0].start.source == "official" else "validation",
        repeats=1 + max(episode.repeat for episode in episodes),
    )


def write_evaluation(
    out: Path,
    checkpoint: Path,
    episodes: Sequence[Episode],
    reward: Reward,
    params: Params,
    overwrite: bool = False,
    *,
    whole: bool = True,
) -> Handle:
    """Writes the evaluation folder: summary.json, episodes.json, episodes.zarr, and films of the first episodes.

    Args:
        reward: what scored the episodes.
        whole: false for an evaluation that ended because the simulator crashed too often: it gets no summary, and is for
            looking at only.
    """
    with atomic_directory(out, overwrite=overwrite) as folder:
        if whole:
            write_json(folder / "summary.json", asdict(summarise(episodes, params.eval.temperature)))
        write_json(folder / "episodes.json", [_row(episode) for episode in episodes])
        _write_zarr(folder, episodes, reward, params, whole)
        filmed = [episode for episode in episodes if not episode.crashed][: params.eval.videos]
        for episode in filmed:
            outcome = "success" if episode.success else "failure"
            again = f"-{episode.repeat}" if episode.repeat else ""
            name = f"{str(episode.start).replace('/', '-')}{again}-{outcome}.mp4"
            film_trajectories(params, [episode.states], folder / name, start=episode.start)
        write_manifest(
            folder,
            Manifest(
                kind="eval",
                params=params.model_dump(include={"task", "sim", "eval"}),
                seed=params.seed,
                inputs={"checkpoint": reference(checkpoint, out)},
                details={"task": params.task, **({} if whole else {"incomplete": True})},
            ),
        )
    return describe(out)


def _row(episode: Episode) -> dict[str, Any]:
    """An episode's line of episodes.json."""
    return {
        "initial_state": str(episode.start),
        "repeat": episode.repeat,
        "seed": episode.seed,
        "success": episode.success,
        "crashed": episode.crashed,
        "env_steps": episode.steps,
        "return": round(episode.episode_return, 6),
    }


def _write_zarr(folder: Path, episodes: Sequence[Episode], reward: Reward, params: Params, whole: bool) -> None:
    from stages.sim.assets import resolve_assets
    from stages.sim.tasks import load_task

    assets, task = resolve_assets(params.sim), load_task(params.task)
    attrs = EpisodesAttrs(
        task=task.id,
        instruction=task.language,
        starts=params.eval.starts,
        temperature=params.eval.temperature,
        seed=params.seed,
        repeats=params.eval.repeats if params.eval.temperature else 1,
        max_env_steps=params.eval.max_env_steps or task.max_env_steps,
        action_repeat=params.sim.action_repeat,
        params={
            **params.model_dump(
                include={
                    "sim": True,
                    "eval": True,
                    "gen_reward": True,
                    "policy": {"dtype", "center_crop", "sampling"},
                }
            ),
            "reward": reward.to_json(),
            "assets": {"kind": assets.kind, "digest": assets.digest},
            "renderer": choose_backend(params.sim.renderer),
        },
    )
    write_episodes(
        folder,
        attrs,
        starts=[episode.start for episode in episodes],
        repeat=[episode.repeat for episode in episodes],
        seed=[episode.seed for episode in episodes],
        success=[episode.success for episode in episodes],
        crashed=[episode.crashed for episode in episodes],
        initial_state=[episode.initial_state for episode in episodes],
        decisions=[episode.decisions for episode in episodes],
        whole=whole,
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
        MismatchError: the checkpoint was made for another image size or action repeat than params give, or was trained on
            states of the evaluation.
        TooManyCrashes: in more than a tenth of the episodes; those that had ended are kept beside `out`, marked incomplete.
    """
    for given in checkpoints:
        path = out or next_path("evals")
        refuse_existing(path, overwrite)
        fitted, checkpoint = open_checkpoint(params, given)
        starts = start_states(fitted.eval.starts, fitted.eval.episodes, fitted.seed)
        refuse_trained_on(checkpoint, require_fit(fitted, checkpoint), starts)
        try:
            with (
                open_env(fitted, min(fitted.eval.envs, fitted.eval.episodes)) as env,
                Scorer(task_reward(fitted, env)) as scorer,
            ):
                policy = open_policy(fitted, checkpoint)
                episodes = evaluate_policy(policy, env, scorer, fitted, reporter)
        except TooManyCrashes as error:
            kept = path.with_name(f"{path.name}.incomplete")
            write_evaluation(kept, checkpoint, error.episodes, scorer.reward, fitted, overwrite=True, whole=False)
            raise TooManyCrashes(
                f"{error}; the episodes so far are kept in {kept}, marked incomplete", error.episodes
            ) from error
        del policy  # the next one needs its memory
        yield write_evaluation(path, checkpoint, episodes, scorer.reward, fitted, overwrite)
