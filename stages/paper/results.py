"""What a cell leaves behind: the outcome of every evaluated episode, so that any statistic can be computed again."""

import csv
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from stages.errors import ArtifactError
from stages.store.artifacts import write_text

RESULT = "result.json"
HISTORY = "history.csv"  # a row an iteration, the columns of `stages.history`
VALIDATION = "validation.csv"
STILLS = "stills.png"
FAILED = "failed.txt"  # why a cell has no result
SCHEMA = 1


@dataclass(frozen=True)
class Outcome:
    """The episodes of one evaluation."""

    temperature: float  # 0 is greedy
    # (initial state such as `official/7`, repeat, success); success is None where the simulator crashed.
    episodes: tuple[tuple[str, int, bool | None], ...]


@dataclass(frozen=True)
class Result:
    """What one cell came to."""

    name: str
    key: str
    task: str
    seed: int
    before: tuple[Outcome, ...]  # of the base checkpoint, one for each temperature
    after: tuple[Outcome, ...]  # of the checkpoint that training kept, the same temperatures in the same order
    iterations: int  # that ran
    ending: str  # completed, solved, stuck, ...
    kept: int  # the iteration whose checkpoint was evaluated; 0 is the base itself
    train_seconds: float  # of iterations and validations, over all attempts of a run that was cut off
    evaluation_seconds: float  # of both ends on the official states
    base: Mapping[str, Any]
    params: Mapping[str, Any]
    versions: Mapping[str, str]
    machine: Mapping[str, Any]

    def outcomes(self, temperature: float) -> tuple[Outcome, Outcome] | None:
        """Before and after at a temperature; None where the cell was not evaluated at it."""
        pairs = zip(self.before, self.after, strict=True)
        return next((pair for pair in pairs if pair[0].temperature == temperature), None)


def write_result(folder: Path, result: Result) -> None:
    # An episode takes three values; a line for each of them would make a record of thousands of lines.
    write_text(folder / RESULT, json.dumps({"schema": SCHEMA, **asdict(result)}) + "\n")


def read_result(folder: Path) -> Result | None:
    """The result in a cell's folder; None when the cell has none.

    Raises:
        ArtifactError: one that cannot be read, or of another schema.
    """
    path = folder / RESULT
    if not path.exists():
        return None
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data.pop("schema") != SCHEMA:
            raise ValueError("another schema")
        for end in ("before", "after"):
            data[end] = tuple(
                Outcome(one["temperature"], tuple((state, repeat, won) for state, repeat, won in one["episodes"]))
                for one in data[end]
            )
        return Result(**data)
    except (ValueError, KeyError, TypeError):
        raise ArtifactError(
            f"{path} cannot be read as a cell's result; delete {folder} and run the cell again"
        ) from None


def read_rows(path: Path) -> list[dict[str, float]]:
    """The rows of a CSV file of numbers; an empty field is NaN. No file has no rows."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return [
            {name: float(value) if value else math.nan for name, value in row.items()} for row in csv.DictReader(file)
        ]


def successes(outcomes: Sequence[Outcome]) -> tuple[int, int, int]:
    """(successes, episodes that count, crashes) of evaluations together."""
    won = [success for outcome in outcomes for _, _, success in outcome.episodes]
    return sum(success is True for success in won), sum(success is not None for success in won), won.count(None)
