"""What is wrong with a reward program, by the line of the program."""

from stages.errors import TgrpoError


class RewardError(TgrpoError):
    """A reward program that is refused, fails, or breaks its limits.

    Attributes:
        path: of the program, as the user knows it.
        line: of the program, from 1; None where none is to blame.
        finding: what was found, without place and remedy.
        remedy: what mends it.
    """

    def __init__(self, path: str, line: int | None, finding: str, remedy: str) -> None:
        where = path if line is None else f"{path}, line {line}"
        super().__init__(f"{where}: {finding}; {remedy}")
        self.path, self.line, self.finding, self.remedy = path, line, finding, remedy

    def __reduce__(self) -> tuple[type["RewardError"], tuple[str, int | None, str, str]]:
        return type(self), (self.path, self.line, self.finding, self.remedy)


class SandboxError(TgrpoError):
    """The sandbox itself does not start here. No program is to blame."""
