"""`tgrpo train`: Algorithm 1 in one warm process, over the same cores as the separate commands.

    evaluate the start -> for k = 1..K: sample groups, weigh them, update -> evaluate the end -> summary

Every iteration leaves its groups, advantages and checkpoint on disk, byte for byte those of `tgrpo rollout`, `advantage`
and `update` with the same seed on a CPU. A run that was cut off goes on with `resume` at the first artifact it lacks.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.advantage import weigh_group
from stages.describe import describe
from stages.errors import ArtifactError, MismatchError
from stages.evaluate import evaluate_policy, write_evaluation
from stages.params import Params
from stages.pictures import plot_history
from stages.reporting import Reporter, Silent
from stages.rollout import group_inputs, sample_group
from stages.store.artifacts import digest_of, write_json
from stages.store.groups import open_group
from stages.store.handles import Handle
from stages.store.provenance import Manifest, reference, write_manifest
from stages.update import (
    base_of,
    learn,
    open_learner,
    open_pair,
    read_history,
    update_inputs,
    write_checkpoint,
    write_history,
)
from stages.workspace import next_path, open_checkpoint, open_env, open_policy, read_checkpoint, task_reward

if TYPE_CHECKING:
    from stages.policy.policy import VLAPolicy

RUN = "run.json"


def train(
    params: Params,
    checkpoint: Path,
    reward: Path | None = None,
    out: Path | None = None,
    reporter: Reporter | None = None,
    resume: bool = False,
) -> Handle:
    """Trains from `checkpoint` for `train.iterations` iterations and evaluates before and after.

    Args:
        out: the run's folder: checkpoints/, groups/, advantages/, evals/, history.csv, curve.png, summary.json; None
            numbers it under data/runs.
        resume: go on with what lies at `out`.

    Raises:
        ArtifactError: `out` holds a run and `resume` is false, or one of its artifacts is broken.
        MismatchError: `out` holds a run with other params or another start.
    """
    reporter = reporter or Silent()
    out = out or next_path("runs")
    params, checkpoint = open_checkpoint(params, checkpoint)
    _claim(out, params, checkpoint, reward, resume)
    checkpoints = [checkpoint, *(checkpoint_path(out, k) for k in range(1, params.train.iterations + 1))]
    before = _evaluate(params, checkpoint, out / "evals", "before", reporter)
    _iterate(params, checkpoints, reward, out, reporter)
    after = _evaluate(params, checkpoints[-1], out / "evals", "after", reporter)
    return _conclude(params, out, checkpoint, checkpoints[-1], before, after)


def checkpoint_path(out: Path, iteration: int) -> Path:
    return out / "checkpoints" / f"{iteration:03d}"


def _iterate(params: Params, checkpoints: list[Path], reward: Path | None, out: Path, reporter: Reporter) -> None:
    """The iterations that are not on disk yet. checkpoints[k] is the one after iteration k."""
    done = max(k for k, path in enumerate(checkpoints) if k == 0 or path.exists())
    if done == len(checkpoints) - 1:
        return
    learner = open_learner(params, checkpoints[done])
    manifest = read_checkpoint(checkpoints[done])
    base = base_of(checkpoints[done], manifest)
    history = read_history(checkpoints[done])
    start_iteration = manifest.details["iteration"] - done
    with open_env(params, params.rollout.envs) as env:
        spec = task_reward(params, env.object_names, reward)
        for k in range(done + 1, len(checkpoints)):
            iteration = start_iteration + k
            weighed = []
            for index in range(params.rollout.groups):
                group_at = out / "groups" / f"{k:03d}" / f"{index:03d}.zarr"
                if not group_at.exists():
                    sample_group(
                        learner.policy,
                        env,
                        spec,
                        params,
                        iteration=iteration,
                        index=index,
                        inputs=group_inputs(group_at, checkpoints[k - 1], reward),
                        out=group_at,
                        reporter=reporter,
                    )
                weighed.append(out / "advantages" / f"{k:03d}" / group_at.name)
                if not weighed[-1].exists():
                    weigh_group(open_group(group_at), params.advantage, weighed[-1])
            pairs = [open_pair(path) for path in weighed]
            row = learn(learner, pairs, params, iteration, reporter)
            history.append(row)
            parent_manifest = read_checkpoint(checkpoints[k - 1])
            write_checkpoint(
                learner,
                checkpoints[k],
                parent=checkpoints[k - 1],
                parent_manifest=parent_manifest,
                base=base,
                history=history,
                group=pairs[0][0],
                seed=params.seed,
                params=params,
                inputs=update_inputs(weighed, checkpoints[k]),
            )
            reporter.note(
                f"iteration {k}/{len(checkpoints) - 1}: success {row['success']:.0%}, return {row['return']:.1f}, "
                f"KL {row['kl']:.4f}, entropy {row['entropy']:.3f}, {row['groups_used']:.0f} of {row['groups']:.0f} groups used"
            )


def _claim(out: Path, params: Params, checkpoint: Path, reward: Path | None, resume: bool) -> None:
    """Makes the run's folder and writes down what it is a run of, or checks that it is the same run."""
    record = {
        "params": params.model_dump(exclude={"loop"}),
        "checkpoint": digest_of(checkpoint) if read_checkpoint(checkpoint) else None,
        "reward": digest_of(reward) if reward else None,
    }
    path = out / RUN
    if path.exists():
        if not resume:
            raise ArtifactError(f"{out} holds a run already; go on with it by --resume, or choose another --out")
        found = json.loads(path.read_text())
        changed = sorted(_differences(found, record))
        if changed:
            raise MismatchError(
                f"{out} is a run with another {', '.join(changed[:3])}; resume it with its own params, or choose another --out"
            )
        return
    if out.exists() and any(out.iterdir()):
        raise ArtifactError(f"{out} exists and is no run of `tgrpo train`; choose another --out")
    out.mkdir(parents=True, exist_ok=True)
    write_json(path, record)


def _differences(a: dict[str, Any], b: dict[str, Any], prefix: str = "") -> list[str]:
    """The dotted keys at which two nested records differ."""
    keys: list[str] = []
    for key in a.keys() | b.keys():
        left, right = a.get(key), b.get(key)
        if isinstance(left, dict) and isinstance(right, dict):
            keys += _differences(left, right, f"{prefix}{key}.")
        elif left != right:
            keys.append(f"{prefix}{key}")
    return keys


def _evaluate(params: Params, checkpoint: Path, out: Path, when: str, reporter: Reporter) -> list[dict[str, Any]]:
    """Evaluates at every temperature of params; what is on disk already is read. Returns the summaries."""
    summaries = []
    policy: VLAPolicy | None = None  # one for all temperatures; none when all is on disk
    for temperature in params.train.eval_temperatures:
        at = out / f"{when}-t{temperature:g}"
        if not at.exists():
            here = params.model_copy(update={"eval": params.eval.model_copy(update={"temperature": temperature})})
            policy = policy or open_policy(here, checkpoint)
            with open_env(here, min(here.eval.envs, here.eval.episodes)) as env:
                episodes = evaluate_policy(policy, env, here, reporter)
            write_evaluation(at, checkpoint, episodes, here)
        summary: dict[str, Any] = json.loads((at / "summary.json").read_text())
        reporter.note(f"{when} training, {_temperature(temperature)}: {rate_line(summary)}")
        summaries.append(summary)
    return summaries


def _temperature(temperature: float) -> str:
    return "greedy" if temperature == 0 else f"sampled at temperature {temperature:g}"


def rate_line(summary: dict[str, Any]) -> str:
    """`35/50 = 70% (95% Wilson interval 56% to 81%)`."""
    return (
        f"{summary['successes']}/{summary['episodes']} = {summary['success_rate']:.0%} "
        f"({summary['confidence']:.0%} Wilson interval {summary['low']:.0%} to {summary['high']:.0%})"
    )


def _conclude(
    params: Params,
    out: Path,
    start: Path,
    end: Path,
    before: list[dict[str, Any]],
    after: list[dict[str, Any]],
) -> Handle:
    history = read_history(end)
    write_history(out / "history.csv", history)
    plot_history(out / "curve.png", history, before, after)
    summary = {"iterations": params.train.iterations, "task": params.task, "before": before, "after": after}
    write_json(out / "summary.json", summary)
    (out / "summary.md").write_text(_report(params, before, after))
    write_manifest(
        out,
        Manifest(
            kind="train",
            params=params.model_dump(exclude={"loop"}),
            seed=params.seed,
            inputs={"start": reference(start, out), "end": reference(end, out)},
            details={"task": params.task},
        ),
    )
    return describe(out)


def _report(params: Params, before: list[dict[str, Any]], after: list[dict[str, Any]]) -> str:
    """The run's result as Markdown. Whether the intervals overlap is said, so that nobody reads noise as a gain."""
    rows = [
        f"| {_temperature(b['temperature'])} | {rate_line(b)} | {rate_line(a)} | "
        f"{'yes' if max(a['low'], b['low']) <= min(a['high'], b['high']) else 'no'} |"
        for b, a in zip(before, after, strict=True)
    ]
    return "\n".join(
        [
            f"# {params.task} after {params.train.iterations} iterations, seed {params.seed}",
            "",
            f"Success on {before[0]['episodes']} official initial states, none of which training used.",
            "",
            "| acting | before | after | intervals overlap |",
            "| --- | --- | --- | --- |",
            *rows,
            "",
        ]
    )
