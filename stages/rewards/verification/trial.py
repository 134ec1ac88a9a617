"""A program's first run, in the sandbox: does it run at all, say the same twice, and answer fast enough?"""

import re
from collections.abc import Callable
from dataclasses import dataclass

from stages.rewards.errors import RewardError
from stages.rewards.interface import Context, Moments
from stages.rewards.program import Reward
from stages.rewards.sandbox import Limits, RewardProcess, Scored
from stages.rewards.sandbox.check import checked
from stages.rewards.verification.checks import Check

MOST_SECONDS = 50e-6  # of CPU time for each moment
ENOUGH_SECONDS, MOST_RUNS = 0.1, 50  # to measure it by
_RUNS = "a finite number, or (number, milestone), for every moment"
_SAME = "the same reward for the same moment, whenever and in whatever order it is asked"
_ALONE = "the same rewards for many moments at once as for each alone"
_FAST = f"at most {MOST_SECONDS * 1e6:g} microseconds of CPU time for a moment"


@dataclass(frozen=True)
class Trial:
    """What came of it.

    Attributes:
        scored: None where the program failed.
        checks: runs, deterministic, vectorised, fast.
        seconds_per_call: CPU time inside the program for one moment, without that for making the state; None where it failed.
    """

    scored: Scored | None
    checks: list[Check]
    seconds_per_call: float | None


def try_program(
    reward: Reward, context: Context, moments: Moments, name_moment: Callable[[int], str], limits: Limits | None = None
) -> Trial:
    """Scores the moments, and examines how the program does that.

    Args:
        name_moment: what messages call one of the moments.

    Raises:
        SandboxError: the sandbox does not start here.
    """
    count = len(moments["step"])

    def failed(name: str, required: str, error: RewardError) -> Check:
        place = f"line {error.line} of the program" if error.line else "the program"
        moment = re.search(r"\bmoment (\d+)", error.finding)
        at = f"; moment {moment[1]} is {name_moment(int(moment[1]))}" if moment and int(moment[1]) < count else ""
        return Check(name, False, error.finding, f"{required}; {error.remedy}", place + at)

    try:
        process = RewardProcess(reward.source, reward.path, context, limits)
    except RewardError as error:
        return Trial(None, [failed("runs", _RUNS, error)], None)
    with process:
        try:
            scored = process.score(moments)
        except RewardError as error:
            return Trial(None, [failed("runs", _RUNS, error)], None)
        checks = [Check("runs", True, f"a finite reward for each of {count} moments", _RUNS)]
        seconds, runs = scored.seconds, 1
        while seconds < ENOUGH_SECONDS and runs < MOST_RUNS:  # the clock of CPU time has coarse ticks
            seconds, runs = seconds + process.score(moments).seconds, runs + 1
        try:
            process.score(moments, check_purity=True)
            checks.append(Check("deterministic", True, "the same rewards again, in a fresh interpreter", _SAME))
        except RewardError as error:
            checks.append(failed("deterministic", _SAME, error))
        try:
            process.check_vectorised(moments)
            vectorised = checked(reward.source, reward.path).vectorised
            told = "the same rewards one by one" if vectorised else "it is called for one moment at a time"
            checks.append(Check("vectorised", True if vectorised else None, told, _ALONE))
        except RewardError as error:
            checks.append(failed("vectorised", _ALONE, error))
    per_call = seconds / (runs * max(count, 1))
    fast = per_call <= MOST_SECONDS
    told = f"{'within' if fast else 'more than'} {MOST_SECONDS * 1e6:g} microseconds"
    checks.append(Check("fast", fast, told, _FAST, measured=f"measured {per_call * 1e6:.1f}"))
    return Trial(scored, checks, per_call)
