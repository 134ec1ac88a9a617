from pathlib import Path
from typing import Annotated

import typer

from tgrpo_cli.options import DEFAULT_PARAMS, Base, Out, ParamsFile, Reward, Seed, Set, TaskId, Unverified, read_params


def command(
    iterations: Annotated[int | None, typer.Option(help="Iterations of rollout, advantage, update.")] = None,
    checkpoint: Annotated[Path | None, typer.Option(help="Where to start; default: policy.base of params.")] = None,
    base: Base = None,
    reward: Reward = None,
    unverified: Unverified = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run at --out, if there is one.")] = False,
    algo: Annotated[
        str | None,
        typer.Option(
            help="Overrides update.algo: tgrpo, tgrpo_no_s, tgrpo_no_t, grpo, reinforce, ppo, grape, sft.",
            show_default=False,
        ),
    ] = None,
    task: TaskId = None,
    out: Out = None,
    seed: Seed = None,
    params: ParamsFile = DEFAULT_PARAMS,
    set_: Set = None,
) -> None:
    """Run the whole loop in one warm process: evaluate, iterate rollout, advantage and update, evaluate again.

    Writes the same groups and checkpoints as the separate commands, byte for byte on a CPU. Progress is judged on start
    states that are neither trained on nor official: a run ends early when it is solved or stuck, or when the policy breaks,
    and the best checkpoint is the one that is evaluated (`train` in params.yaml).

    Example:

        tgrpo train --iterations 20 --out data/runs/first

        tensorboard --logdir data/runs
    """
    from stages.train import train
    from tgrpo_cli.output import HandlePrinter, reporter

    resolved = read_params(
        params, set_, train__iterations=iterations, policy__base=base, task=task, seed=seed, update__algo=algo
    )
    start = checkpoint or Path(resolved.policy.base_of(resolved.task))
    HandlePrinter()(train(resolved, start, reward, out, reporter(), resume=resume, unverified=unverified))
