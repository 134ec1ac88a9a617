from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tgrpo_cli.options import DEFAULT_PARAMS, ParamsFile, Set, read_params

if TYPE_CHECKING:
    from stages.policy.parity.checks import Check


def command(
    checkpoint: Annotated[
        Path, typer.Argument(help="A checkpoint in OpenVLA's published layout, or a model of the hub.")
    ],
    fixture: Annotated[Path, typer.Option(metavar="FILE.npz", help="What the original model computed.")],
    images: Annotated[Path, typer.Option(metavar="IMAGES.npz", help="What the original image pipeline computed.")],
    actions: Annotated[
        Path | None, typer.Option(metavar="ACTIONS.npz", help="What the original action tokenizer computed.")
    ] = None,
    params: ParamsFile = DEFAULT_PARAMS,
    set_: Set = None,
) -> None:
    """Compare a checkpoint, step by step, with what the original code computed from it. Exit 1 when a limit is passed.

    In float32. docs/parity.md says how to make the files from a checkpoint of your own.

    Example:

        tgrpo parity CHECKPOINT --fixture model.npz --images images.npz
    """
    from stages.parity import parity

    def show(check: "Check") -> None:
        print(check.line(), flush=True)

    outcome = parity(read_params(params, set_), checkpoint, fixture, images, actions, show)
    if outcome.absent:
        print(f"left out, not in the files: {', '.join(outcome.absent)}")
    print(outcome.line())
    if outcome.over:
        raise typer.Exit(1)
