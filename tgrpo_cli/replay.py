from pathlib import Path
from typing import Annotated

import typer

from tgrpo_cli.options import DEFAULT_PARAMS, ParamsFile, Set, read_params


def command(
    groups: Annotated[list[Path] | None, typer.Argument(help="Groups, or a folder of them; default: stdin.")] = None,
    no_images: Annotated[bool, typer.Option("--no-images", help="Do not render and compare images.")] = False,
    render: Annotated[
        Path | None,
        typer.Option(help="Film the group into this MP4 from its stored states instead; no physics runs."),
    ] = None,
    size: Annotated[int | None, typer.Option(help="Of the film, pixels, 16 to 1024; default: 256.")] = None,
    camera: Annotated[
        str | None, typer.Option(help="Of the film: any camera of the scene; default: agentview.")
    ] = None,
    trajectory: Annotated[int | None, typer.Option(help="Only this trajectory, from 0; default: all.")] = None,
    params: ParamsFile = DEFAULT_PARAMS,
    set_: Set = None,
) -> None:
    """Run saved groups again; exit 0 only if every state, success and image is the stored one, bit for bit.

    Example:

        tgrpo replay data/groups/0001.zarr
        tgrpo replay data/groups/0001.zarr --render group.mp4 --size 512 --camera frontview
    """
    from stages.errors import UsageError
    from stages.replay import film, replay
    from tgrpo_cli.inputs import read_inputs
    from tgrpo_cli.output import HandlePrinter, reporter

    resolved = read_params(params, set_)
    handles = read_inputs(groups, "group", "replay")
    show = HandlePrinter()
    if render is None:
        if size is not None or camera is not None:
            raise UsageError("--size and --camera are about a film; name it with --render OUT.mp4")
        for handle in replay(resolved, handles, images=not no_images, trajectory=trajectory, reporter=reporter()):
            show(handle)
        return
    handle, *more = handles
    if more:
        raise UsageError(f"--render makes one film, but {1 + len(more)} groups are given; name one")
    show(film(resolved, handle, render, trajectory=trajectory, size=size, camera=camera))
