"""`tgrpo gen-reward`: a task -> a reward program that was proven on recorded trajectories, as an artifact.

A program comes from the task's goal or a demonstration (built-in), from a file, or from Claude, whom the findings of each
refusal are told. Wherever it comes from, it is run in the sandbox and verified on the task's probe trajectories; one that is
refused becomes no artifact, and is kept with its report beside the others, under `refused`.
"""

import shutil
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.describe import describe
from stages.errors import MismatchError, UsageError
from stages.params import Params
from stages.probes import ensure_probes, starts, step_limit
from stages.reporting import Reporter, Silent
from stages.reward_files import builtin_reward, key_pose_reward, load_reward, task_context, write_reward
from stages.rewards.errors import RewardError
from stages.rewards.program import Reward
from stages.rewards.sandbox import check_program
from stages.rewards.scorer import make_context
from stages.rewards.verification import Report
from stages.store.artifacts import atomic_directory, refuse_existing, write_text
from stages.store.handles import Handle
from stages.store.provenance import Manifest, write_manifest
from stages.trust import is_shipped
from stages.types import Task
from stages.verify_reward import verify_reward, write_report
from stages.workspace import next_path, policy_for_probes

if TYPE_CHECKING:
    from stages.rewards.llm.generate import Generation
    from stages.rewards.llm.prompt import GenerationRequest
    from stages.rewards.llm.settings import LlmSettings

CONVERSATION = "conversation"  # of the artifact: prompt, replies, candidates, findings, usage


@dataclass(frozen=True)
class Builtin:
    """The generator's program: `gen_reward.program`."""

    demo: Path | None = None  # a group with a success, for `key_poses`


@dataclass(frozen=True)
class FromFile:
    """A program that somebody wrote."""

    path: Path


@dataclass(frozen=True)
class FromModel:
    """A program that `gen_reward.model` writes."""

    fresh: bool = False  # ask even when the same was asked before


Origin = Builtin | FromFile | FromModel


def gen_reward(
    params: Params, origin: Origin, out: Path | None = None, reporter: Reporter | None = None, overwrite: bool = False
) -> Handle:
    """Writes the reward of the params' task.

    A built-in program that was verified when this version was made is not verified again.

    Raises:
        TaskError: no such task, or a goal for which there is no built-in program.
        RewardError: a program that the sandbox refuses.
        MismatchError: one that verification refuses; the message names its report.
        LlmError: no key, no reply, or no program that passes; the replies are kept.
        ArtifactError: `out` exists and `overwrite` is false.
    """
    from stages.sim.tasks import load_task

    reporter = reporter or Silent()
    task = load_task(params.task)
    out = out or next_path("rewards")
    refuse_existing(out, overwrite)
    if isinstance(origin, Builtin) and origin.demo is None and params.gen_reward.program == "goal":
        reward = built_in(params)
        if is_shipped(reward, task.id):
            return _write(out, reward, params, task, "built-in: goal", overwrite=overwrite)
    if isinstance(origin, FromModel):
        return _converse(params, task, out, origin.fresh, reporter, overwrite)
    if isinstance(origin, FromFile):  # whatever is wrong with it is said before anything is recorded
        reward, said = replace(load_reward(origin.path), task=task.id), f"file: {origin.path.name}"
    elif params.gen_reward.program == "key_poses":
        if origin.demo is None:
            raise UsageError(
                "gen_reward.program = key_poses reads the key poses of a demonstration; name a group with a success by "
                "--demo, such as one that `tgrpo demos` wrote"
            )
        reward, said = key_pose_reward(params.gen_reward, task.id, origin.demo), "built-in: key_poses"
    else:
        reward, said = built_in(params), "built-in: goal"
    probes = ensure_probes(params, policy_for_probes(params, reporter), reporter)
    report = verify_reward(reward, params, reporter, probes)
    if not report.passed:
        kept = _keep_refused(out, reward, report, params, probes)
        raise MismatchError(
            f"{reward.path} is {report.told()}; see {kept / 'findings.txt'} and the picture beside it, mend the program, and "
            "try again"
        )
    reporter.note(f"{said} is verified: {report.verdict}")
    return _write(out, reward, params, task, said, report, probes, overwrite=overwrite)


def _converse(params: Params, task: Task, out: Path, fresh: bool, reporter: Reporter, overwrite: bool) -> Handle:
    """Has the model write the program. The probes are recorded when there is a program to try: what is wrong with key, model or
    address shows before.
    """
    from stages.rewards.llm.errors import LlmError
    from stages.rewards.llm.generate import generate

    p = params.gen_reward
    request = _request(params, task)
    examined: list[tuple[Reward, Report, Path]] = []
    telling = _Telling(reporter, p.max_tokens)

    def examine(source: str) -> str | None:
        telling.end()
        reward = Reward(task.id, source)
        try:
            check_program(source, reward.path)
        except RewardError as error:
            reporter.note(f"{p.model}'s program is refused before it runs: {error}")
            return f"The program is refused before it runs: {error}"
        probes = ensure_probes(params, policy_for_probes(params, reporter), reporter)
        report = verify_reward(reward, params, reporter, probes)
        examined.append((reward, report, probes))
        reporter.note(f"{p.model}'s program is {report.verdict}")
        return None if report.passed else f"The program is {report.told()}.\n\n{report.findings()}"

    folder = _numbered(out.parent / "conversations", out.name)
    try:
        generation = generate(
            request, _settings(params), examine, folder, fresh=fresh, progress=telling, warn=reporter.note
        )
    except LlmError as error:
        if not examined:
            raise
        kept = _keep_refused(out, examined[-1][0], examined[-1][1], params, examined[-1][2])
        raise LlmError(f"{error}; the report on the last program that ran is in {kept}") from None
    finally:
        telling.end()
    reward, report, probes = examined[-1]
    cost = "" if generation.paid.usd is None else f", {generation.paid.usd:.3f} USD"
    reporter.note(
        f"{generation.model}: {len(generation.turns)} replies, {generation.tokens.output} tokens written{cost}"
    )
    said = f"model: {generation.model}"
    reporter.note(f"{said} is verified: {report.verdict}")
    return _write(out, reward, params, task, said, report, probes, generation, overwrite=overwrite)


def _request(params: Params, task: Task) -> "GenerationRequest":
    """What the model is told of the task, with where things stand at the first start of the probes.

    Raises:
        TaskError: the task has no expert. SimulatorError: its scene cannot be opened.
    """
    from stages.rewards.llm.prompt import GenerationRequest
    from stages.sim.assets import resolve_assets
    from stages.sim.env import LiberoEnv
    from stages.sim.probe_scripts import expert_steps
    from stages.sim.runtime import libero_root

    env = LiberoEnv(task, params.sim, resolve_assets(params.sim))
    try:
        env.reset(next(starts(params)))
        next(expert_steps(env))  # a task without an expert cannot be verified, so nothing is asked
        scene, names = env.scene(), env.names
    finally:
        env.close()
    return GenerationRequest(
        language=task.language,
        bddl=task.bddl_file.read_text(encoding="utf-8"),
        context=make_context(task.id, names, step_limit(params, task)),
        libero=libero_root(),
        initial_pos=dict(
            zip(
                (*names.object_names, *names.place_names),
                (*scene.object_pos.round(3).tolist(), *scene.place_pos.round(3).tolist()),
                strict=True,
            )
        ),
    )


def _settings(params: Params) -> "LlmSettings":
    from stages.rewards.llm.settings import LlmSettings

    p = params.gen_reward
    return LlmSettings(p.model, p.max_tokens, p.temperature, p.rounds, p.timeout_s, p.max_retries)


class _Telling:
    """The client's progress callback: a bar for each reply, which ends at the most tokens that one may have."""

    def __init__(self, reporter: Reporter, max_tokens: int) -> None:
        self._reporter, self._most = reporter, max_tokens
        self._bar: ExitStack | None = None
        self._told = 0

    def __call__(self, tokens: int, note: str) -> None:
        if note.endswith("asking again"):
            self.end()
            self._reporter.note(note)
            return
        if self._bar is None:
            self._bar, self._told = ExitStack(), 0
            self._advance = self._bar.enter_context(self._reporter.bar("reply", self._most))
        now = max(self._told, min(tokens, self._most))
        self._advance(now - self._told, note)
        self._told = now

    def end(self) -> None:
        """Closes the bar of a reply that is there, or broke. May be called twice."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def _numbered(folder: Path, name: str) -> Path:
    """A folder that no later try writes over: conversations/0003, numbered on where an earlier one lies there."""
    path, number = folder / name, 2
    while path.exists():
        path, number = folder / f"{name}-{number}", number + 1
    return path


def _keep_refused(out: Path, reward: Reward, report: Report, params: Params, probes: Path) -> Path:
    kept = _numbered(out.parent / "refused", out.name)
    with atomic_directory(kept) as folder:
        write_reward(folder, reward)
        write_report(folder, _timeless(report), params, probes)
        write_text(folder / "findings.txt", report.findings())
    return kept


def _timeless(report: Report) -> Report:
    """Without what was measured: it differs from run to run, and the artifact of the same program should not."""
    return replace(report, seconds_per_call=None, checks=tuple(replace(check, measured="") for check in report.checks))


def _write(
    out: Path,
    reward: Reward,
    params: Params,
    task: Task,
    origin: str,
    report: Report | None = None,
    probes: Path | None = None,
    generation: "Generation | None" = None,
    *,
    overwrite: bool,
) -> Handle:
    details: dict[str, Any] = {
        "task": task.id,
        "instruction": task.language,
        "digest": reward.digest,
        "origin": origin,
        "verdict": report.verdict if report else "passed, when this version was made",
    }
    if generation is not None:
        details["tokens"] = generation.tokens.to_json()
        details["usd"] = generation.cost.usd  # as if none of it had come from the cache
    from stages.rewards.llm.generate import PAID

    with atomic_directory(out, overwrite=overwrite) as folder:
        write_reward(folder, reward)
        if report and probes:
            write_report(folder, _timeless(report), params, probes)
        if generation is not None:
            shutil.copytree(generation.folder, folder / CONVERSATION, ignore=shutil.ignore_patterns(PAID))
        write_manifest(
            folder,
            Manifest(
                kind="reward", params=params.model_dump(include={"gen_reward"}), seed=params.seed, details=details
            ),
        )
    return describe(out)


def built_in(params: Params) -> Reward:
    """The built-in reward of the params' task, from its files alone: no simulator, no meshes.

    Raises:
        TaskError, ParamsError: see `builtin_reward`. SimulatorError: LIBERO is not installed.
    """
    from stages.sim.tasks import load_task

    return builtin_reward(params.gen_reward, task_context(load_task(params.task)))
