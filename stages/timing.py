"""How the benchmarks time: by the clock and by the processor, medians with their spread, contenders by turns."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

Seconds = tuple[float, float]  # by the clock, and of this process on a processor
Contender = Callable[[], Mapping[str, Seconds]]  # runs once; what each of its pieces took
_FEWEST_ROUNDS = 5
IDLE = 0.95  # of a processor, below which the machine was busy with something else


@dataclass(frozen=True)
class Cost:
    """Of one control step, one decision, or whatever a line of the table is about, in milliseconds."""

    median: float
    p10: float
    p90: float
    cpu: float  # median of what its process had of a processor
    steps: int  # how many were timed

    @classmethod
    def of(cls, seconds: Sequence[Seconds]) -> "Cost":
        clock, cpu = 1000 * np.array(seconds).T
        p10, median, p90 = (float(value) for value in np.percentile(clock, [10, 50, 90]))
        return cls(median, p10, p90, float(np.median(cpu)), len(clock))


def by_turns(
    contenders: Mapping[str, Contender],
    rounds: int,
    advance: Callable[[int, str], None] | None = None,
    budget_s: float = math.inf,
) -> dict[str, Cost]:
    """Runs all contenders once to warm them up, then one after the other in `rounds` rounds.

    Whatever else the machine does so hits all alike. After `budget_s` seconds it leaves it at the rounds there are, five at
    least. Returns the cost of every piece that a contender names.
    """
    seconds: dict[str, list[Seconds]] = {}
    began = time.monotonic()
    for turn in range(-1, rounds):
        if turn >= _FEWEST_ROUNDS and time.monotonic() - began > budget_s:
            break
        for contender in contenders.values():
            pieces = contender()
            if turn >= 0:
                for name, took in pieces.items():
                    seconds.setdefault(name, []).append(took)
            if advance is not None:
                advance(1, "")
    return {name: Cost.of(values) for name, values in seconds.items()}
