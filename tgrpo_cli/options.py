"""The options that several commands share, and how they become params."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from stages.params import Params

ParamsFile = Annotated[
    Path,
    typer.Option(
        "--params",
        "--profile",
        help="The params file to read defaults from, or the name of one in params/: openvla-7b.",
    ),
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", "-S", metavar="SECTION.KEY=VALUE", help="Override one params value (repeatable)."),
]
Seed = Annotated[
    int | None, typer.Option(help="Overrides params' seed: sampled actions, start states, weights, noise.")
]
TaskId = Annotated[str | None, typer.Option("--task", help="A LIBERO task, such as libero_object/6.")]
Base = Annotated[
    str | None,
    typer.Option(
        "--base", metavar="FOLDER|OWNER/NAME", help="Overrides policy.base: a checkpoint folder or a model of the hub."
    ),
]
Reward = Annotated[Path | None, typer.Option(help="A reward artifact or a bare program; default: the built-in one.")]
Unverified = Annotated[
    bool, typer.Option("--unverified", help="Take a reward that has no report of having passed verification.")
]
Out = Annotated[Path | None, typer.Option(help="Where to write; default: the next free number under data/.")]
Force = Annotated[bool, typer.Option("--force", help="Replace --out if it exists.")]

DEFAULT_PARAMS = Path("params.yaml")


def read_params(path: Path, overrides: list[str] | None, **flags: object) -> "Params":
    """The params file, then --set, then the command's own flags (named section__key, or a top-level key; None is not given)."""
    from stages.params import load_params

    given = [f"{name.replace('__', '.')}={value}" for name, value in flags.items() if value is not None]
    return load_params(path, [*(overrides or []), *given])


def require_folder(json: Path | None) -> None:
    """Raises UsageError, before anything is computed, when --json names a file in a folder that is not there."""
    from stages.errors import UsageError

    if json is not None and not json.parent.is_dir():
        raise UsageError(f"--json {json}: there is no folder {json.parent}; make it first")
