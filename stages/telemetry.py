"""What a run measures of itself: seconds of each part of an iteration and environment steps a second.

These differ from run to run, so they have a file of their own, `telemetry.csv`; `history.csv` holds what the seed decides.
Line 0 has the evaluation and the validation of the start, the last line the evaluation at the end.
"""

import csv
import io
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean

from stages.guard import due
from stages.store.artifacts import write_text

TELEMETRY = "telemetry.csv"
PARTS = ("sample", "weigh", "update", "write", "validate", "evaluate")
SECONDS = tuple(f"seconds_{part}" for part in PARTS)
COLUMNS = ("iteration", *SECONDS, "seconds", "env_steps", "env_steps_per_s")

Line = dict[str, float]


class Clock:
    """Seconds of the parts of one iteration, and the environment steps of the groups that it sampled."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.env_steps = 0

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Adds the seconds of the block to a part, one of PARTS."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] += time.perf_counter() - began


def record(path: Path, iteration: int, clock: Clock) -> None:
    """Adds what a clock measured to an iteration's line of a telemetry file; a clock that measured nothing adds nothing.

    What two processes spent on one iteration, because the first was cut off, is added up.
    """
    if not clock.seconds:
        return
    lines = {int(line["iteration"]): line for line in read_telemetry(path)}
    lines[iteration] = _line(iteration, clock, lines.get(iteration, dict.fromkeys(COLUMNS, 0.0)))
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines[k] for k in sorted(lines))
    write_text(path, text.getvalue())


def _line(iteration: int, clock: Clock, earlier: Line) -> Line:
    seconds = {
        name: round(earlier[name] + clock.seconds.get(part, 0.0), 3) for part, name in zip(PARTS, SECONDS, strict=True)
    }
    steps = int(earlier["env_steps"]) + clock.env_steps
    sampling = seconds["seconds_sample"]
    return {
        "iteration": iteration,
        **seconds,
        "seconds": round(sum(seconds.values()), 3),
        "env_steps": steps,
        "env_steps_per_s": round(steps / sampling, 1) if steps and sampling else 0.0,
    }


def read_telemetry(path: Path) -> list[Line]:
    """The lines of a telemetry file, by iteration; none when there is no file."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return [
            {name: int(value) if name in ("iteration", "env_steps") else float(value) for name, value in line.items()}
            for line in csv.DictReader(file)
        ]


def seconds_an_iteration(lines: Sequence[Line]) -> float:
    """Mean over the iterations so far, without their validations. Needs one at least."""
    return fmean(
        line["seconds"] - line["seconds_validate"] - line["seconds_evaluate"] for line in lines if line["iteration"]
    )


def seconds_left(lines: Sequence[Line], iteration: int, last: int, every: int) -> float:
    """What a run still takes after `iteration` if it goes on to the `last`, its validations and evaluation included.

    Args:
        lines: of the telemetry, with one iteration at least; what they lack, such as an evaluation that an earlier
            version of the process did, counts as nothing.
        every: `train.validation.every`.
    """
    validations = [line["seconds_validate"] for line in lines if line["seconds_validate"]]
    to_validate = sum(due(k, last, every) for k in range(iteration + 1, last + 1))
    evaluation = sum(line["seconds_evaluate"] for line in lines if line["iteration"] == 0)
    return (
        (last - iteration) * seconds_an_iteration(lines)
        + (to_validate * fmean(validations) if validations else 0.0)
        + evaluation
    )
