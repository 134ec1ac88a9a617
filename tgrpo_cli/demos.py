from typing import Annotated

import typer

from tgrpo_cli.options import DEFAULT_PARAMS, Force, Out, ParamsFile, Seed, Set, TaskId, read_params


def command(
    episodes: Annotated[int | None, typer.Option(help="Successful demonstrations to record.")] = None,
    task: TaskId = None,
    out: Out = None,
    seed: Seed = None,
    params: ParamsFile = DEFAULT_PARAMS,
    set_: Set = None,
    force: Force = False,
) -> None:
    """Record demonstrations of the scripted expert, as trajectory groups of one trajectory each.

    Example:

        tgrpo demos --episodes 50 | tgrpo sft
    """
    from stages.demos import demos
    from tgrpo_cli.output import HandlePrinter, reporter

    show = HandlePrinter()
    for handle in demos(
        read_params(params, set_, demos__episodes=episodes, task=task, seed=seed), out, reporter(), overwrite=force
    ):
        show(handle)
