"""`tgrpo gen-reward`: a task -> a reward program that was proven on recorded trajectories, as an artifact.

A program comes from the task's goal or a demonstration (built-in), from a file, or from Claude, whom the findings of each
refusal are told. Wherever it comes from, it is run in the sandbox and verified on the task's probe trajectories; one that is
refused becomes no artifact, and is kept with its report beside the others, under `refused`.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.describe import describe
from stages.errors import MismatchError, UsageError
from stages.params import Params
from stages.probes import ensure_probes, probe_groups
from stages.reporting import Reporter, Silent
from stages.reward_files import builtin_reward, key_pose_reward, load_reward, write_reward
from stages.rewards.errors import RewardError
from stages.rewards.interface import Context
from stages.rewards.program import Reward
from stages.rewards.sandbox import check_program
from stages.rewards.scorer import make_context
from stages.rewards.verification import Report
from stages.store.artifacts import atomic_directory, refuse_existing, write_text
from stages.store.groups import Group, open_group
from stages.store.handles import Handle
from stages.store.provenance import Manifest, write_manifest
from stages.trust import is_shipped
from stages.types import Task
from stages.verify_reward import verify_reward, write_report
from stages.workspace import next_path, policy_for_probes

if TYPE_CHECKING:
    from stages.rewards.llm.generate import Generation
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
        if is_shipped(reward):
            return _write(out, reward, params, task, "built-in: goal", overwrite=overwrite)
    if isinstance(origin, FromModel):
        _refuse_missing_key(params, origin.fresh)
    checkpoint = policy_for_probes(params)
    probes = ensure_probes(params, checkpoint, reporter)
    first = open_group(probe_groups(probes)[0])
    conversation: Generation | None = None
    if isinstance(origin, FromModel):
        reward, report, conversation, said = _converse(params, task, first, probes, out, origin.fresh, reporter)
    else:
        if isinstance(origin, FromFile):
            reward = replace(load_reward(origin.path), task=task.id)
            said = f"file: {origin.path.name}"
        elif params.gen_reward.program == "key_poses":
            if origin.demo is None:
                raise UsageError(
                    "gen_reward.program = key_poses reads the key poses of a demonstration; name a group with a success by "
                    "--demo, such as one that `tgrpo demos` wrote"
                )
            reward = key_pose_reward(params.gen_reward, _context_of(first), origin.demo)
            said = "built-in: key_poses"
        else:
            reward = builtin_reward(params.gen_reward, _context_of(first))
            said = "built-in: goal"
        report = verify_reward(reward, params, reporter, probes)
        if not report.passed:
            kept = _keep_refused(out, reward, report, params, probes)
            worst = report.failed[0]
            raise MismatchError(
                f"{reward.path} is {report.verdict} ({worst.found}{f'; {worst.where}' if worst.where else ''}); see "
                f"{kept / 'findings.txt'} and the picture beside it, mend the program, and try again"
            )
    reporter.note(f"{said} is verified: {report.verdict}")
    return _write(out, reward, params, task, said, report, probes, conversation, overwrite=overwrite)


def _converse(
    params: Params, task: Task, first: Group, probes: Path, out: Path, fresh: bool, reporter: Reporter
) -> tuple[Reward, Report, "Generation", str]:
    """Has the model write the program."""
    from stages.rewards.llm.generate import generate
    from stages.rewards.llm.prompt import GenerationRequest
    from stages.sim.runtime import libero_root

    p, settings = params.gen_reward, _settings(params)
    scene, names = first.initial_scene(), first.names
    request = GenerationRequest(
        language=task.language,
        bddl=task.bddl_file.read_text(encoding="utf-8"),
        context=_context_of(first),
        libero=libero_root(),
        initial_pos=dict(
            zip(
                (*names.object_names, *names.place_names),
                (*scene.object_pos.round(3).tolist(), *scene.place_pos.round(3).tolist()),
                strict=True,
            )
        ),
    )
    examined: list[tuple[Reward, Report]] = []

    def examine(source: str) -> str | None:
        reward = Reward(task.id, source)
        try:
            check_program(source, reward.path)
        except RewardError as error:
            return f"The program is refused before it runs.\n{error}"
        report = verify_reward(reward, params, reporter, probes)
        examined.append((reward, report))
        reporter.note(f"{p.model}'s program is {report.verdict}")
        return None if report.passed else report.findings()

    with _telling(reporter, p.max_tokens) as progress:
        generation = generate(request, settings, examine, _conversation_path(out), fresh=fresh, progress=progress)
    reward, report = examined[-1]
    cost = "" if generation.paid.usd is None else f", {generation.paid.usd:.3f} USD"
    reporter.note(
        f"{generation.model}: {len(generation.turns)} replies, {generation.tokens.output} tokens written{cost}"
    )
    return reward, report, generation, f"model: {generation.model}"


def _settings(params: Params) -> "LlmSettings":
    from stages.rewards.llm.settings import LlmSettings

    p = params.gen_reward
    return LlmSettings(p.model, p.max_tokens, p.temperature, p.rounds, p.timeout_s, p.max_retries)


def _refuse_missing_key(params: Params, fresh: bool) -> None:
    """Says so before anything is recorded, unless an earlier reply may answer without a key."""
    from stages.rewards.llm.cache import CACHE
    from stages.rewards.llm.client import Client

    if fresh or not any(CACHE.glob("*.json")):
        Client(_settings(params)).check_key()


@contextmanager
def _telling(reporter: Reporter, max_tokens: int) -> Iterator[Any]:
    """A progress callback of the client, on a bar that ends at the most tokens a reply may have."""
    with reporter.bar("reply", max_tokens) as advance:
        told = 0

        def progress(tokens: int, note: str) -> None:
            nonlocal told
            step, told = max(0, min(tokens, max_tokens) - told), max(told, min(tokens, max_tokens))
            advance(step, note)

        yield progress


def _conversation_path(out: Path) -> Path:
    """A folder that no failure deletes: data/rewards/conversations/0003, numbered on where an earlier try lies there."""
    folder = out.parent / "conversations"
    path, number = folder / out.name, 2
    while path.exists():
        path, number = folder / f"{out.name}-{number}", number + 1
    return path


def _keep_refused(out: Path, reward: Reward, report: Report, params: Params, probes: Path) -> Path:
    kept = out.parent / "refused" / out.name
    with atomic_directory(kept, overwrite=True) as folder:
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
    with atomic_directory(out, overwrite=overwrite) as folder:
        write_reward(folder, reward)
        if report and probes:
            write_report(folder, _timeless(report), params, probes)
        if generation is not None:
            shutil.copytree(generation.folder, folder / CONVERSATION)
        write_manifest(
            folder,
            Manifest(
                kind="reward", params=params.model_dump(include={"gen_reward"}), seed=params.seed, details=details
            ),
        )
    return describe(out)


def built_in(params: Params) -> Reward:
    """The built-in reward of the params' task, whose scene is opened for its names.

    Raises:
        TaskError, ParamsError: see `builtin_reward`. SimulatorError: the scene cannot be opened.
    """
    from stages.sim.assets import resolve_assets
    from stages.sim.env import LiberoEnv
    from stages.sim.tasks import load_task

    env = LiberoEnv(load_task(params.task), params.sim, resolve_assets(params.sim))
    try:
        context = make_context(env.task.id, env.names, env.task.max_env_steps)
    finally:
        env.close()
    return builtin_reward(params.gen_reward, context)


def _context_of(group: Group) -> Context:
    return make_context(group.attrs.task, group.names, group.attrs.max_env_steps)
