from pathlib import Path
from typing import Annotated

import typer

from tgrpo_cli.options import DEFAULT_PARAMS, Force, Out, ParamsFile, Set, read_params


def command(
    groups: Annotated[list[Path] | None, typer.Argument(help="Groups, or a folder of them; default: stdin.")] = None,
    a1: Annotated[float | None, typer.Option(help="Weight of the step-level advantage S (eq. 8).")] = None,
    a2: Annotated[float | None, typer.Option(help="Weight of the trajectory-level advantage T (eq. 8).")] = None,
    out: Out = None,
    params: ParamsFile = DEFAULT_PARAMS,
    set_: Set = None,
    force: Force = False,
) -> None:
    """Compute the fused step and trajectory advantages of groups (eq. 6 to 8), one artifact per group.

    Example:

        tgrpo rollout --envs 4 | tgrpo advantage --a1 0.3 --a2 0.7
    """
    from stages.advantage import advantages
    from tgrpo_cli.inputs import read_inputs
    from tgrpo_cli.output import HandlePrinter

    given = a1 is not None or a2 is not None
    resolved = read_params(params, set_, advantage__per_task={} if given else None, advantage__a1=a1, advantage__a2=a2)
    show = HandlePrinter()
    for handle in advantages(resolved, read_inputs(groups, "group", "advantage"), out, overwrite=force):
        show(handle)
