from pathlib import Path
from typing import Annotated

import typer

from tgrpo_cli.options import (
    DEFAULT_PARAMS,
    Base,
    Force,
    Out,
    ParamsFile,
    Reward,
    Seed,
    Set,
    TaskId,
    Unverified,
    read_params,
)


def command(
    envs: Annotated[int | None, typer.Option(help="Trajectories per group (G), all from one initial state.")] = None,
    groups: Annotated[int | None, typer.Option(help="Groups, each from an initial state of its own.")] = None,
    temperature: Annotated[float | None, typer.Option(help="Sampling temperature; 0 is greedy.")] = None,
    stop: Annotated[
        str | None, typer.Option(help="first: the first success ends the group (the paper); each: to its own end.")
    ] = None,
    checkpoint: Annotated[Path | None, typer.Option(help="The policy; default: policy.base of params.")] = None,
    base: Base = None,
    reward: Reward = None,
    unverified: Unverified = False,
    task: TaskId = None,
    out: Out = None,
    seed: Seed = None,
    params: ParamsFile = DEFAULT_PARAMS,
    set_: Set = None,
    force: Force = False,
) -> None:
    """Sample trajectory groups with a policy in the simulator; each is printed as soon as it is whole.

    An --out that ends in .zarr names the group, any other the folder for the groups.

    Example:

        tgrpo rollout --envs 4 | tgrpo advantage --a1 0.3 --a2 0.7 | tgrpo update
    """
    from stages.rollout import rollout
    from tgrpo_cli.output import HandlePrinter, reporter

    resolved = read_params(
        params,
        set_,
        rollout__envs=envs,
        rollout__groups=groups,
        rollout__temperature=temperature,
        rollout__stop=stop,
        policy__base=base,
        task=task,
        seed=seed,
    )
    start = checkpoint or Path(resolved.policy.base_of(resolved.task))
    show = HandlePrinter()
    for handle in rollout(resolved, start, reward, out, reporter(), overwrite=force, unverified=unverified):
        show(handle)
