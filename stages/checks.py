"""One line of what `tgrpo doctor` says."""

from dataclasses import dataclass

OK, WARNING, FAILURE = 0, 1, 2


@dataclass(frozen=True)
class Check:
    """One line of the report. Severity 0 is fine, 1 is worth knowing, 2 keeps tgrpo from working."""

    name: str
    severity: int
    found: str

    def line(self) -> str:
        return f"{('ok', 'note', 'FAIL')[self.severity]:<5}{self.name:<19}{self.found}"
