"""`tgrpo verify-reward`: a reward -> a report folder under data/reports, with every check, every trajectory and a picture."""

from pathlib import Path

from stages.errors import MismatchError
from stages.gen_reward import built_in
from stages.params import Params
from stages.probes import ensure_probes
from stages.reporting import Reporter
from stages.reward_files import load_reward
from stages.rewards.verification import Report
from stages.store.artifacts import atomic_directory, refuse_existing
from stages.store.provenance import Manifest, read_manifest, reference, write_manifest
from stages.trust import REPORTS
from stages.verify_reward import verify_reward, write_report
from stages.workspace import next_path, policy_for_probes


def report_on(
    params: Params,
    reward: Path | None,
    task: str | None = None,
    probes: Path | None = None,
    out: Path | None = None,
    reporter: Reporter | None = None,
    overwrite: bool = False,
    checkpoint: Path | None = None,
) -> tuple[Report, Path]:
    """Verifies a reward and writes the report, whether it passed or not; returns both.

    Args:
        reward: an artifact or a bare program; None is the built-in one of the params' task.
        task: what the user asked for, if anything; an artifact is verified on its own task.
        probes: recorded before, of the reward's task.
        checkpoint: of a policy whose own episodes shall be among the probes; None takes `policy.base` where that lies on disk.

    Raises:
        MismatchError: an artifact or probes for another task than asked for.
        ArtifactError, RewardError, TgrpoError: see `load_reward` and `verify_reward`.
    """
    out = out or next_path(REPORTS)
    refuse_existing(out, overwrite)
    loaded = built_in(params) if reward is None else load_reward(reward)
    if task and loaded.task not in ("", params.task):
        raise MismatchError(f"{reward} is a reward for {loaded.task}, not for {params.task}; leave --task out")
    params = params.model_copy(update={"task": loaded.task or params.task})
    if probes is None:
        folder = ensure_probes(params, checkpoint or policy_for_probes(params, reporter), reporter)
    else:
        folder = probes
        recorded = read_manifest(folder, "probes").details["task"]
        if recorded != params.task and (task or loaded.task or reward is None):
            raise MismatchError(f"{folder} holds probes of {recorded}, not of {params.task}; leave --probes out")
        params = params.model_copy(update={"task": recorded})
    report = verify_reward(loaded, params, reporter, folder)
    with atomic_directory(out, overwrite=overwrite) as partial:
        write_report(partial, report, params, folder)
        inputs = {"probes": reference(folder, out)} | ({"reward": reference(reward, out)} if reward else {})
        write_manifest(
            partial,
            Manifest(
                kind="report",
                params=params.model_dump(include={"gen_reward"}),
                seed=params.seed,
                inputs=inputs,
                details={
                    "task": report.task,
                    "reward_digest": loaded.digest,
                    "passed": report.passed,
                    "verdict": report.verdict,
                },
            ),
        )
    return report, out
