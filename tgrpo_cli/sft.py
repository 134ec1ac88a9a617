from pathlib import Path
from typing import Annotated

import typer

from tgrpo_cli.options import DEFAULT_PARAMS, Force, Out, ParamsFile, Seed, Set, read_params


def command(
    groups: Annotated[
        list[Path] | None, typer.Argument(help="Demonstrations, or a folder of them; default: stdin.")
    ] = None,
    updates: Annotated[int | None, typer.Option(help="Optimiser updates.")] = None,
    out: Out = None,
    seed: Seed = None,
    params: ParamsFile = DEFAULT_PARAMS,
    set_: Set = None,
    force: Force = False,
) -> None:
    """Clone demonstrations into a base checkpoint of openvla-tiny (supervised fine-tuning).

    Example:

        tgrpo sft data/demos/0001 --updates 700
    """
    from stages.sft import sft
    from tgrpo_cli.inputs import read_inputs
    from tgrpo_cli.output import HandlePrinter, reporter

    resolved = read_params(params, set_, sft__updates=updates, seed=seed)
    demonstrations = [handle.path for handle in read_inputs(groups, "group", "sft")]
    HandlePrinter()(sft(resolved, demonstrations, out, reporter(), overwrite=force))
