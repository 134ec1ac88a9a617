"""How a long stage tells what it is doing. The command line shows bars on stderr; tests and libraries stay silent."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

Advance = Callable[[int, str], None]


class Reporter(Protocol):
    def bar(self, label: str, total: int) -> AbstractContextManager[Advance]:
        """A progress bar of `total` steps; the value yielded is called with (steps done, a short note)."""
        ...

    def note(self, text: str) -> None:
        """One line of news."""
        ...


class Silent:
    """Reports nothing."""

    @contextmanager
    def bar(self, label: str, total: int) -> Iterator[Advance]:
        yield lambda steps, note: None

    def note(self, text: str) -> None:
        pass
