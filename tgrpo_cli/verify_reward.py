from pathlib import Path
from typing import Annotated

import typer

from tgrpo_cli.options import DEFAULT_PARAMS, Force, Out, ParamsFile, Set, TaskId, read_params


def command(
    reward: Annotated[
        Path | None, typer.Argument(metavar="[REWARD]", help="A reward artifact, or a bare program such as reward.py.")
    ] = None,
    builtin: Annotated[bool, typer.Option("--builtin", help="Verify the task's built-in program.")] = False,
    probes: Annotated[
        Path | None, typer.Option(help="Recorded probe trajectories; default: those of the task, recorded once.")
    ] = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            help="A policy whose own episodes are among the probes; default: policy.base where it is on disk."
        ),
    ] = None,
    task: TaskId = None,
    out: Out = None,
    params: ParamsFile = DEFAULT_PARAMS,
    set_: Set = None,
    force: Force = False,
) -> None:
    """Prove a reward program on recorded trajectories: successes, failures, and attempts to cheat it.

    Prints every check, writes a report with a picture, and exits with 1 when the program is refused. `tgrpo rollout` and
    `tgrpo train` take no reward without a report that it passed.

    Example:

        tgrpo verify-reward data/rewards/0001
    """
    from stages.describe import describe
    from stages.errors import UsageError
    from stages.reward_report import report_on
    from tgrpo_cli.output import print_checks, reporter

    if (reward is None) != builtin:
        raise UsageError(
            "name a reward (data/rewards/0001 or reward.py), or the built-in one by --builtin; one of them"
        )
    if probes and checkpoint:
        raise UsageError("--probes are recorded already, with or without a policy; leave out --probes or --checkpoint")
    report, folder = report_on(
        read_params(params, set_, task=task),
        reward,
        task,
        probes,
        out,
        reporter(),
        overwrite=force,
        checkpoint=checkpoint,
    )
    print_checks(str(reward or f"the built-in reward of {report.task}"), report, describe(folder))
    raise SystemExit(0 if report.passed else 1)
