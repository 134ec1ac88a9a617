from pathlib import Path
from typing import Annotated

import typer

from tgrpo_cli.options import DEFAULT_PARAMS, Force, Out, ParamsFile, Seed, Set, read_params


def command(
    checkpoint: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Checkpoints of `tgrpo update`; default: stdin when piped, else the newest in data/checkpoints."
        ),
    ] = None,
    frames: Annotated[
        list[Path] | None,
        typer.Option(
            help="A group to compare on (repeatable); default: those that the checkpoint was trained on.",
        ),
    ] = None,
    out: Out = None,
    seed: Seed = None,
    params: ParamsFile = DEFAULT_PARAMS,
    set_: Set = None,
    force: Force = False,
) -> None:
    """Merge a checkpoint's adapter into a full checkpoint in the published layout, and check that it acts alike.

    Example:

        tgrpo export data/checkpoints/0003 --out data/exports/butter
    """
    from stages.export import export
    from stages.workspace import newest
    from tgrpo_cli.inputs import piped, read_inputs
    from tgrpo_cli.output import HandlePrinter, reporter

    resolved = read_params(params, set_, seed=seed)
    show = HandlePrinter()
    if not checkpoint and not piped():
        checkpoint = [newest("checkpoints")]
    for handle in read_inputs(checkpoint, "checkpoint", "export"):
        show(export(resolved, handle.path, frames or (), out, reporter(), overwrite=force))
