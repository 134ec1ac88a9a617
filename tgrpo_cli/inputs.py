"""Where a command's inputs come from: paths on its line, or handles on stdin as the stage before prints them."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from stages.errors import UsageError

if TYPE_CHECKING:
    from stages.store.handles import Handle


def read_inputs(paths: list[Path] | None, kind: str, command: str) -> Iterator["Handle"]:
    """Yields a handle per artifact of `kind`, as soon as it is known.

    A folder that is no artifact itself stands for the artifacts in it, in the order of their names.

    Raises:
        UsageError: no input at all, or an artifact of another kind.
        ArtifactError: a path that holds no whole artifact.
    """
    from stages.describe import expand
    from stages.store.handles import parse_handles

    if paths:
        yield from expand(paths, kind, command)
        return
    if sys.stdin.isatty():
        raise UsageError(f"tgrpo {command} needs a {kind}: name a path, or pipe one in (see tgrpo {command} --help)")
    yield from parse_handles(sys.stdin, kind, command)


def piped() -> bool:
    """Whether something other than a person, such as a pipe or a file, is on stdin."""
    import os
    import stat

    if sys.stdin is None or sys.stdin.closed:
        return False
    mode = os.fstat(sys.stdin.fileno()).st_mode
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode)
