"""`tgrpo train`: Algorithm 1 in one warm process, over the same cores as the separate commands.

    evaluate the start -> for k = 1..K: sample groups, weigh them, update, validate now and then -> evaluate the best

Every iteration leaves its groups, advantages and checkpoint on disk, byte for byte those of `tgrpo rollout`, `advantage`
and `update` with the same seed on a CPU. The guard ends a run early and chooses the checkpoint that is evaluated, by
validation states that are neither trained on nor official. A run that was cut off goes on with `resume` at the first
artifact it lacks, and takes the same decisions; one that ended stays ended.
"""

import shutil
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from stages.advantage import weigh_group
from stages.conclusion import acting, conclude, ending_line, read_summary
from stages.errors import DivergedError
from stages.estimate import clock as in_words
from stages.evaluate import evaluate_policy, rate_line, start_states, validate, write_evaluation
from stages.gen_reward import built_in
from stages.guard import Ending, due, idle, judge, kept, trouble
from stages.history import HISTORY, read_history, write_history
from stages.lineage import refuse_trained_on
from stages.live import cells, cost
from stages.params import Params
from stages.recipe import refuse_unusable
from stages.reporting import Reporter, Silent
from stages.reward_files import load_reward
from stages.rewards.scorer import Scorer
from stages.rollout import group_inputs
from stages.run_folder import Run
from stages.sampling import Wanted, open_sampling_env, sample_groups
from stages.store.advantages import Advantages
from stages.store.artifacts import atomic_directory
from stages.store.groups import Group, open_group
from stages.store.handles import Handle
from stages.telemetry import Clock, read_telemetry, record, seconds_left
from stages.trackers import Log, figures, open_trackers, require_trackers
from stages.trust import refuse_unverified
from stages.update import base_of, learn, open_learner, open_pair, update_inputs, write_checkpoint
from stages.workspace import (
    next_path,
    open_checkpoint,
    open_env,
    open_policy,
    read_checkpoint,
    require_fit,
    task_reward,
)

if TYPE_CHECKING:
    from stages.learner import Learner
    from stages.policy.policy import VLAPolicy
    from stages.sim.vector import VectorEnv


def train(
    params: Params,
    checkpoint: Path,
    reward: Path | None = None,
    out: Path | None = None,
    reporter: Reporter | None = None,
    resume: bool = False,
    unverified: bool = False,
) -> Handle:
    """Trains from `checkpoint` for at most `train.iterations` iterations and evaluates before and after.

    Args:
        out: the run's folder, see `run_folder`; None numbers it under data/runs.
        resume: go on with what lies at `out`.
        unverified: take a reward without a report that it passed.

    Raises:
        ArtifactError: `out` holds a run and `resume` is false, or one of its artifacts is broken.
        MismatchError: `out` holds a run with other params or another start, or `checkpoint` was trained on states that it
            would be validated or evaluated on.
        ParamsError: params that no update can learn with.
        TgrpoError: `train.wandb` names a project and the package is not installed.
    """
    reporter = reporter or Silent()
    require_trackers(params)
    refuse_unusable(params)
    params, checkpoint = open_checkpoint(params, checkpoint)
    for starts, n in ((params.eval.starts, params.eval.episodes), ("validation", params.train.validation.episodes)):
        refuse_trained_on(checkpoint, require_fit(params, checkpoint), start_states(starts, n, params.seed))
    if not unverified:
        refuse_unverified(load_reward(reward) if reward else built_in(params), reward, params.task)
    run = Run(params, checkpoint, reward, out or next_path("runs"))
    run.claim(resume)
    before = _evaluate(run, 0, "before", run.start, reporter)
    ending = run.ending() or run.end(_iterate(run, reporter))
    chosen = kept(run.validations(), ending, params.train.keep)
    reporter.note(ending_line(run, ending, chosen))
    after = _evaluate(run, ending.iteration, "after", run.checkpoint(chosen), reporter)
    return conclude(run, ending, chosen, before, after)


def _iterate(run: Run, reporter: Reporter) -> Ending:
    """The iterations that are not on disk yet, until the run ends."""
    params, k = run.params, run.done()
    with (
        open_sampling_env(params) as env,
        Scorer(task_reward(params, env, run.reward)) as scorer,
        Scorer(task_reward(params, env)) as builtin,
        nullcontext(open_learner(params, run.checkpoint(k))) as learner,
        open_trackers(params, run.folder) as log,
        reporter.table(f"{params.task}, {params.update.algo}, seed {params.seed}") as add_line,
    ):
        loop = _Loop(run, learner, env, scorer, scorer if scorer.reward == builtin.reward else builtin, reporter)
        ending = loop.judge(k)
        record(run.telemetry, k, loop.clock)
        _log_all(run, loop.history, log)
        first = k + 1
        while ending is None:
            k += 1
            loop.clock = Clock()
            loop.sample(k)
            pairs = loop.weigh(k)
            try:
                row = loop.update(k, pairs)
            except DivergedError as error:  # nothing was written, and the weights in memory are spoilt
                return Ending("diverged", k, str(error))
            loop.write(k, pairs)
            ending = loop.judge(k)
            record(run.telemetry, k, loop.clock)
            lines, validation = read_telemetry(run.telemetry), run.read_validation(k)
            log(k, figures(row, lines[-1], validation))
            left = seconds_left(lines, k, run.last, params.train.validation.every)
            add_line(cells(k, run.last, row, lines[-1], validation), "" if ending else f"about {in_words(left)} left")
            if k == first and ending is None:
                reporter.note(cost(run, k, lines, left))
    return ending


class _Loop:
    """The parts of an iteration, each over the core of its own command, and what they share while a run goes on."""

    def __init__(
        self, run: Run, learner: "Learner", env: "VectorEnv", scorer: Scorer, builtin: Scorer, reporter: Reporter
    ) -> None:
        """`scorer` is for what is learnt from, and `builtin` for validations, as for `tgrpo eval`."""
        self.clock = Clock()  # of the iteration that goes on
        self.history = read_history(run.checkpoint(run.done()))
        self._run = run
        self._learner = learner
        self._env = env
        self._scorer, self._builtin = scorer, builtin
        self._reporter = reporter
        start = read_checkpoint(run.start)
        self._base = base_of(run.start, start)
        self._offset: int = start.details["iteration"]

    def sample(self, k: int) -> None:
        """Samples the groups of iteration k that are not on disk yet."""
        run, params = self._run, self._run.params
        paths = [run.group(k, index) for index in range(params.rollout.groups)]
        wanted = [
            Wanted(index, path, group_inputs(path, run.checkpoint(k - 1), run.reward))
            for index, path in enumerate(paths)
            if not path.exists()
        ]
        if not wanted:
            return
        with self.clock.part("sample"):
            for handle in sample_groups(
                self._learner.policy,
                self._env,
                self._scorer,
                params,
                wanted,
                iteration=self._offset + k,
                reporter=self._reporter,
            ):
                self.clock.env_steps += open_group(handle.path).summary.env_steps

    def weigh(self, k: int) -> list[tuple[Group, Advantages]]:
        """The groups of iteration k with their advantages, which are computed where they are not on disk yet."""
        run, pairs = self._run, []
        with self.clock.part("weigh"):
            for index in range(run.params.rollout.groups):
                path = run.advantages(k, index)
                if not path.exists():
                    weigh_group(open_group(run.group(k, index)), run.params, path, reporter=self._reporter)
                pairs.append(open_pair(path))
        return pairs

    def update(self, k: int, pairs: Sequence[tuple[Group, Advantages]]) -> dict[str, float]:
        """Updates the policy; returns the iteration's line of the history.

        Raises:
            DivergedError: a loss or a gradient is not finite.
        """
        with self.clock.part("update"):
            row = learn(self._learner, pairs, self._run.params, self._offset + k, self._reporter)
        self.history.append(row)
        return row

    def write(self, k: int, pairs: Sequence[tuple[Group, Advantages]]) -> None:
        """Writes the checkpoint of iteration k, and the history so far beside it for those who watch."""
        run = self._run
        with self.clock.part("write"):
            write_checkpoint(
                self._learner,
                run.checkpoint(k),
                parent=run.checkpoint(k - 1),
                parent_manifest=read_checkpoint(run.checkpoint(k - 1)),
                base=self._base,
                history=self.history,
                groups=[group for group, _ in pairs],
                seed=run.params.seed,
                params=run.params,
                inputs=update_inputs([advantages.path for _, advantages in pairs], run.checkpoint(k)),
            )
            write_history(run.folder / HISTORY, self.history)

    def judge(self, k: int) -> Ending | None:
        """Whether the run ends after iteration k; validates its checkpoint, which the policy is, where that is due.

        The last checkpoint of a run is validated as well, unless it is trouble that ended it.
        """
        run, params = self._run, self._run.params.train
        rows = self.history[len(self.history) - k :]  # the start may have a history of its own
        if k and (ending := trouble(rows[-1], params.guard, k)):
            return ending
        ending = idle(rows, params.guard)
        if ending is None and k == run.last:
            ending = Ending("completed", k, "it ran all its iterations")
        if due(k, k if ending else run.last, params.validation.every) and run.read_validation(k) is None:
            with self.clock.part("validate"):
                summary = validate(self._learner.policy, self._env, self._builtin, run.params, self._reporter)
                run.write_validation(k, asdict(summary))
        validations = run.validations()
        newest = judge(validations, params.guard) if validations and validations[-1].iteration == k else None
        return newest or ending


def _log_all(run: Run, history: Sequence[dict[str, float]], log: Log) -> None:
    """Logs the iterations that are on disk, so that trackers show a resumed run whole."""
    lines = {int(line["iteration"]): line for line in read_telemetry(run.telemetry)}
    done = run.done()
    for k in range(done + 1):
        row = history[len(history) - done + k - 1] if k else None
        log(k, figures(row, lines.get(k), run.read_validation(k)))


def _evaluate(run: Run, k: int, when: str, checkpoint: Path, reporter: Reporter) -> list[Path]:
    """Evaluates at every temperature of params; what is on disk already is left as it is. Returns the folders.

    Args:
        k: the line of the telemetry that this counts to.
    """
    clock = Clock()
    folders = []
    policy: VLAPolicy | None = None  # one for all temperatures; none when all is on disk
    for temperature in run.params.train.eval_temperatures:
        at = run.folder / "evals" / f"{when}-t{temperature:g}"
        start_at = run.folder / "evals" / f"before-t{temperature:g}"
        here = run.params.model_copy(update={"eval": run.params.eval.model_copy(update={"temperature": temperature})})
        if at.exists():
            pass
        elif checkpoint == run.start and start_at.exists():  # the same episodes again, to the last bit
            with atomic_directory(at) as folder:
                shutil.copytree(start_at, folder, dirs_exist_ok=True)
        else:
            with clock.part("evaluate"):
                with (
                    open_env(here, min(here.eval.envs, here.eval.episodes)) as env,
                    Scorer(task_reward(here, env)) as scorer,
                ):
                    policy = policy or open_policy(here, checkpoint)
                    episodes = evaluate_policy(policy, env, scorer, here, reporter)
                write_evaluation(at, checkpoint, episodes, scorer.reward, here)
        reporter.note(f"{when} training, {acting(temperature)}: {rate_line(read_summary(at))}")
        folders.append(at)
    record(run.telemetry, k, clock)
    return folders
