from pathlib import Path
from typing import Annotated

import typer

from tgrpo_cli.options import Force, Out


def command(
    groups: Annotated[list[Path] | None, typer.Argument(help="Groups, or a folder of them; default: stdin.")] = None,
    reward: Annotated[
        Path | None, typer.Option(help="A reward that `tgrpo gen-reward` wrote, or a bare program such as reward.py.")
    ] = None,
    out: Out = None,
    force: Force = False,
) -> None:
    """Give groups the rewards of another program, from the recorded scenes: no simulation, all else stays as it was.

    Example:

        tgrpo rescore data/groups/0001.zarr --reward reward.py | tgrpo advantage
    """
    from stages.errors import UsageError
    from stages.rescore import rescore
    from tgrpo_cli.inputs import read_inputs
    from tgrpo_cli.output import HandlePrinter

    if reward is None:
        raise UsageError(
            "tgrpo rescore needs a reward: name one with --reward (a folder of `tgrpo gen-reward`, or a .py file)"
        )
    show = HandlePrinter()
    for handle in rescore(read_inputs(groups, "group", "rescore"), reward, out, overwrite=force):
        show(handle)
