"""What a command prints: handles on stdout when piped, a table on a terminal, progress on stderr."""

import json
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from stages.reporting import AddLine, Advance, Reporter

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.progress import Progress

    from stages.rewards.verification import Report
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

    @contextmanager
    def table(self, title: str) -> Iterator[AddLine]:
        def add(cells: Mapping[str, str], left: str) -> None:
            said = ", ".join(f"{name} {cell}" for name, cell in cells.items() if cell)
            self.note(f"{said}; {left}" if left else said)

        yield add


class BarReporter:
    """Progress bars with an ETA, for terminals; a table stands above them while it grows."""

    SHOWN = 10  # last lines of a table while it grows; all of them stay on the screen at the end

    def __init__(self) -> None:
        from rich.console import Console

        self._console = Console(stderr=True)
        self._lines: list[Mapping[str, str]] | None = None  # of the table that is open
        self._title, self._left = "", ""

    @contextmanager
    def bar(self, label: str, total: int) -> Iterator[Advance]:
        from rich.live import Live

        progress = self._progress()
        task = progress.add_task(label, total=total, note="")
        with Live(get_renderable=lambda: self._screen(progress), console=self._console, transient=True):
            yield lambda steps, note: progress.update(task, advance=steps, note=note)

    def note(self, text: str) -> None:
        self._console.print(text, highlight=False, markup=False)

    @contextmanager
    def table(self, title: str) -> Iterator[AddLine]:
        self._lines, self._title, self._left = [], title, ""
        lines = self._lines

        def add(cells: Mapping[str, str], left: str) -> None:
            lines.append(cells)
            self._left = left

        try:
            yield add
        finally:
            self._lines = None
            if lines:
                self._console.print(_table(title, lines, self._console.width))

    def _screen(self, progress: "Progress") -> "RenderableType":
        from rich.console import Group

        if not self._lines:
            return progress
        table = _table(self._title, self._lines[-self.SHOWN :], self._console.width)
        return Group(table, self._left, progress)

    def _progress(self) -> "Progress":
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        return Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=self._console,
        )


def _table(title: str, lines: list[Mapping[str, str]], width: int) -> "RenderableType":
    """Lines of the same columns, most important first; those that the terminal is too narrow for are left out."""
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    shown = []
    for column in lines[0]:
        width -= max(len(column), *(len(line[column]) for line in lines)) + 2
        if width < 0:
            break
        shown.append(column)
        table.add_column(column, justify="right", no_wrap=True)
    for line in lines:
        table.add_row(*(line[column] for column in shown))
    return table


def print_checks(name: str, report: "Report", handle: "Handle") -> None:
    """A verification, a line for each check with what was found; and in a pipe the report's handle.

    Args:
        name: of the reward, as the user gave it.
    """
    if not sys.stdout.isatty():
        print(handle.to_json(), flush=True)
    out = sys.stdout if sys.stdout.isatty() else sys.stderr
    for check in report.checks:
        mark = "-" if check.passed is None else "ok" if check.passed else "FAIL"
        print(f"{mark:<5}{check.name:<22}{check.found}", file=out)
        if check.passed is False:
            print(f"{'':<27}required: {check.required}", file=out)
            if check.where:
                print(f"{'':<27}seen in: {check.where}", file=out)
    if report.seconds_per_call is not None:
        print(f"{'':<5}{'time':<22}{1e6 * report.seconds_per_call:.1f} microseconds a call", file=out)
    remedy = "" if report.passed else "; mend the program and verify it again"
    print(f"{name} is {report.told()}; see {handle.path}{remedy}", file=out)


def reporter() -> Reporter:
    """Bars when stderr is a terminal, plain lines otherwise."""
    return BarReporter() if sys.stderr.isatty() else LineReporter()
