from pathlib import Path
from typing import Annotated

import typer

from tgrpo_cli.options import DEFAULT_PARAMS, ParamsFile, Set, read_params


def command(
    artifact: Annotated[Path, typer.Argument(help="A group, advantages, checkpoint, evaluation, reward or run.")],
    picture: Annotated[
        Path | None, typer.Option(help="Where to write the picture of a group; default: beside it, as PNG.")
    ] = None,
    film: Annotated[
        Path | None, typer.Option(help="Film a group's trajectories from their simulator states into this MP4.")
    ] = None,
    params: ParamsFile = DEFAULT_PARAMS,
    set_: Set = None,
) -> None:
    """Show what an artifact holds: tables, and for a group a picture of its images, rewards, returns and advantages.

    Example:

        tgrpo inspect data/groups/0001.zarr --film group.mp4
    """
    from stages.inspect import inspect

    for line in inspect(artifact, picture, film, lambda: read_params(params, set_)):
        print(line)
