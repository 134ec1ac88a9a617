"""How a long stage tells what it is doing. The command line shows bars on stderr; tests and libraries stay silent."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

Advance = Callable[[int, str], None]
AddLine = Callable[[Mapping[str, str], str], None]


class Reporter(Protocol):
    def bar(self, label: str, total: int) -> AbstractContextManager[Advance]:
        """A progress bar of `total` steps; the value yielded is called with (steps done, a short note)."""
        ...

    def note(self, text: str) -> None:
        """One line of news."""
        ...

    def table(self, title: str) -> AbstractContextManager[AddLine]:
        """A table that grows while bars and notes go on; the value yielded is called with (column -> cell, what is left).

        All lines of a table have the same columns, the most important first.
        """
        ...


class Silent:
    """Reports nothing."""

    @contextmanager
    def bar(self, label: str, total: int) -> Iterator[Advance]:
        yield lambda steps, note: None

    def note(self, text: str) -> None:
        pass

    @contextmanager
    def table(self, title: str) -> Iterator[AddLine]:
        yield lambda cells, left: None
