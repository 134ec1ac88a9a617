"""What a command prints: handles on stdout when piped, a table on a terminal, progress on stderr."""

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from stages.reporting import Advance, Reporter

if TYPE_CHECKING:
    from stages.store.handles import Handle


class HandlePrinter:
    """Prints each handle as soon as it is whole: a JSON line in a pipe, a row of a table on a terminal."""

    def __init__(self) -> None:
        self._columns: list[str] | None = None

    def __call__(self, handle: "Handle") -> None:
        if not sys.stdout.isatty():
            print(handle.to_json(), flush=True)
            return
        path = handle.path.as_posix()
        row = {"path": path} | {
            key: value
            for key, value in json.loads(handle.to_json()).items()
            if key not in ("kind", "path", "digest") and not isinstance(value, (dict, list)) and not _is_link(key)
        }
        if self._columns is None:
            self._columns = list(row)
            print("  ".join([f"{handle.kind:<{len(path)}}", *(key for key in self._columns[1:])]))
        cells = [str(row.get(key, "")) for key in self._columns]
        print(
            "  ".join(
                [cells[0], *(f"{cell:>{len(key)}}" for key, cell in zip(self._columns[1:], cells[1:], strict=True))]
            )
        )


def _is_link(key: str) -> bool:
    """Fields that only the next stage needs."""
    return key in ("checkpoint", "group", "groups", "parent", "instruction", "reward") or key.endswith("_digest")


class LineReporter:
    """Progress as plain lines, at most one every few seconds, for logs and pipes into files."""

    INTERVAL = 10.0

    @contextmanager
    def bar(self, label: str, total: int) -> Iterator[Advance]:
        start = last = time.monotonic()
        done = 0

        def advance(steps: int, note: str) -> None:
            nonlocal done, last
            done += steps
            now = time.monotonic()
            if now - last < self.INTERVAL and done < total:
                return
            last = now
            left = (now - start) / max(done, 1) * max(total - done, 0)
            print(f"{label}: {done}/{total}, about {left:.0f} s left  {note}".rstrip(), file=sys.stderr, flush=True)

        yield advance

    def note(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)


class BarReporter:
    """Progress bars with an ETA, for terminals."""

    def __init__(self) -> None:
        from rich.console import Console

        self._console = Console(stderr=True)

    @contextmanager
    def bar(self, label: str, total: int) -> Iterator[Advance]:
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        with Progress(*columns, console=self._console, transient=True) as progress:
            task = progress.add_task(label, total=total, note="")
            yield lambda steps, note: progress.update(task, advance=steps, note=note)

    def note(self, text: str) -> None:
        self._console.print(text, highlight=False, markup=False)


def reporter() -> Reporter:
    """Bars when stderr is a terminal, plain lines otherwise."""
    return BarReporter() if sys.stderr.isatty() else LineReporter()
