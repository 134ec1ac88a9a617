from pathlib import Path
from typing import Annotated

import typer

from tgrpo_cli.options import DEFAULT_PARAMS, Force, Out, ParamsFile, Seed, Set, read_params


def command(
    advantages: Annotated[
        list[Path] | None, typer.Argument(help="Advantages, or a folder of them; default: stdin.")
    ] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="The policy to update; default: the one that sampled the groups.")
    ] = None,
    algo: Annotated[str | None, typer.Option(help="Overrides update.algo; that of the advantages.")] = None,
    out: Out = None,
    seed: Seed = None,
    params: ParamsFile = DEFAULT_PARAMS,
    set_: Set = None,
    force: Force = False,
) -> None:
    """Update the policy's LoRA weights on groups and their advantages; writes the next checkpoint.

    Example:

        tgrpo rollout --groups 6 | tgrpo advantage | tgrpo update --set update.lr=3e-4
    """
    from stages.update import update
    from tgrpo_cli.inputs import read_inputs
    from tgrpo_cli.output import HandlePrinter, reporter

    resolved = read_params(params, set_, seed=seed, update__algo=algo)
    handles = list(read_inputs(advantages, "advantages", "update"))
    HandlePrinter()(update(resolved, handles, checkpoint, out, reporter(), overwrite=force))
