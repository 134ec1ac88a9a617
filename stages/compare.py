"""`tgrpo compare`: two policies on the same episodes -> who did better, by how much, and whether that can be chance.

Episodes are paired by task, start state, repeat, temperature and sampling seed. Several pairs of evaluations (tasks, training
seeds) are pooled, and averaged over tasks. A pair of episodes counts unless the simulator crashed in one of the two.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from stages.algo.intervals import paired_difference, wilson
from stages.algo.mcnemar import mcnemar
from stages.errors import MismatchError
from stages.store.episodes import Episodes, open_episodes

CONFIDENCE = 0.95

Outcomes = dict[tuple[str, int], tuple[bool, bool]]  # (start, repeat) -> whether A and B succeeded


@dataclass(frozen=True)
class Row:
    """Two policies on n pairs of episodes. Rates and differences are of these pairs; intervals are at 95%."""

    task: str  # or `pooled`
    a: str | None  # path of A's evaluation; None where several are joined
    b: str | None
    seed: int | None  # the run's seed of both; None where several are joined
    pairs: int  # n, which is both + only_a + only_b + neither
    both: int
    only_a: int
    only_b: int
    neither: int
    crashed: int  # pairs left out, because the simulator crashed in one of the two episodes
    rate_a: float
    low_a: float  # Wilson's interval
    high_a: float
    rate_b: float
    low_b: float
    high_b: float
    difference: float  # rate_b - rate_a
    low: float  # Newcombe's paired interval
    high: float
    p: float  # exact McNemar test over pairs
    states: int  # start states, each counted once for every task
    p_states: float  # exact sign test over start states: does B succeed more often from more of them?


@dataclass(frozen=True)
class TaskMean:
    """Rates averaged over tasks, each task counting the same however many episodes it has."""

    tasks: int
    rate_a: float
    rate_b: float
    difference: float


@dataclass(frozen=True)
class Comparison:
    """Pairs of evaluations at one temperature."""

    temperature: float
    starts: str  # official or validation
    rows: tuple[Row, ...]  # one for each pair of evaluations, in the order given
    tasks: tuple[Row, ...]  # one for each task, its evaluations joined
    pooled: Row  # all together
    mean: TaskMean

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class _Pair:
    """Two evaluations of the same episodes."""

    a: Episodes
    b: Episodes
    outcomes: Outcomes
    crashed: int


def compare(pairs: Sequence[tuple[Path, Path]]) -> Comparison:
    """Compares evaluations pair by pair, by task, and all together.

    Args:
        pairs: at least one of two evaluation folders, the baseline first.

    Raises:
        ArtifactError: an evaluation that is not whole.
        MismatchError: two evaluations that do not pair, pairs that cannot be pooled, or one pair given twice.
    """
    paired = [_pair(open_episodes(a), open_episodes(b)) for a, b in pairs]
    first = paired[0].a
    seen: dict[tuple[str, str], Path] = {}
    for pair in paired:
        for name in ("temperature", "starts"):
            _refuse_difference(
                name, getattr(first.attrs, name), getattr(pair.a.attrs, name), first, pair.a, "be pooled"
            )
        key = str(pair.a.path.resolve()), str(pair.b.path.resolve())
        if key in seen:
            raise MismatchError(f"{pair.a.path} and {pair.b.path} are given twice; pooled, they would count twice")
        seen[key] = pair.b.path
    by_task: dict[str, list[_Pair]] = defaultdict(list)
    for pair in paired:
        by_task[pair.a.attrs.task].append(pair)
    tasks = tuple(_row(task, members) for task, members in by_task.items())
    return Comparison(
        temperature=first.attrs.temperature,
        starts=first.attrs.starts,
        rows=tuple(_row(pair.a.attrs.task, [pair]) for pair in paired),
        tasks=tasks,
        pooled=_row("pooled", paired),
        mean=TaskMean(
            len(tasks),
            sum(row.rate_a for row in tasks) / len(tasks),
            sum(row.rate_b for row in tasks) / len(tasks),
            sum(row.difference for row in tasks) / len(tasks),
        ),
    )


WORLD = ("physics", "settle_steps")  # of sim: what an episode goes through. How a policy sees it is the policy's own


def do_pair(a: Path, b: Path) -> bool:
    """Whether two whole evaluations are of the same episodes."""
    try:
        _pair(open_episodes(a), open_episodes(b))
    except MismatchError:
        return False
    return True


def _pair(a: Episodes, b: Episodes) -> _Pair:
    """Raises MismatchError, with what differs, when two evaluations are not of the same episodes."""
    for name in ("task", "temperature", "starts", "max_env_steps"):
        _refuse_difference(name, getattr(a.attrs, name), getattr(b.attrs, name), a, b)
    _refuse_difference("sim.assets", _assets(a), _assets(b), a, b)
    for name in WORLD:
        _refuse_difference(f"sim.{name}", a.attrs.params["sim"].get(name), b.attrs.params["sim"].get(name), a, b)
    sampled = a.attrs.temperature > 0
    if sampled:
        _refuse_difference("seed", a.attrs.seed, b.attrs.seed, a, b)
        _refuse_difference("repeats", a.attrs.repeats, b.attrs.repeats, a, b)
    of_a, of_b = _outcomes(a), _outcomes(b)
    for here, there, lacking in ((of_a, of_b, b), (of_b, of_a, a)):
        if missing := [key for key in here if key not in there]:
            raise MismatchError(
                f"{a.path} and {b.path} do not pair: {len(missing)} start states of one are not in {lacking.path}, "
                f"{missing[0][0]} first; evaluate both with the same --episodes, --starts and --seed"
            )
    _refuse_other_starts(a, b)
    counted: Outcomes = {}
    for key, outcome in of_a.items():
        other = of_b[key]
        if outcome is not None and other is not None:
            counted[key] = outcome, other
    if not counted:
        raise MismatchError(f"{a.path} and {b.path} have no pair of episodes in which the simulator did not crash")
    return _Pair(a, b, counted, len(of_a) - len(counted))


def _refuse_other_starts(a: Episodes, b: Episodes) -> None:
    """Raises MismatchError where a start state of one name is not the same state, to the last bit, in both."""
    states = []
    for episodes in (a, b):
        crashed = episodes["crashed"][:].tolist()
        rows = zip(episodes.starts, episodes["initial_state"][:], crashed, strict=True)
        states.append({str(start): state for start, state, lost in rows if not lost})
    for start in states[0]:
        if start in states[1] and not np.array_equal(states[0][start], states[1][start]):
            raise MismatchError(
                f"{a.path} and {b.path} do not pair: {start} is not the same state in both; evaluate both with one version and "
                "the same params of sim"
            )


def _refuse_difference(name: str, of_a: object, of_b: object, a: Episodes, b: Episodes, cannot: str = "pair") -> None:
    if of_a != of_b:
        raise MismatchError(
            f"{a.path} and {b.path} cannot {cannot}: {name} is {of_a} and {of_b}; evaluate both with the same {name}"
        )


def _assets(episodes: Episodes) -> str:
    made_with = episodes.attrs.params["assets"]
    return f"{made_with['kind']} ({made_with['digest'][:12]})"


def _outcomes(episodes: Episodes) -> dict[tuple[str, int], bool | None]:
    """Success of each episode by its start and repeat; None where the simulator crashed."""
    columns = (episodes[name][:].tolist() for name in ("repeat", "success", "crashed"))
    return {
        (str(start), repeat): None if crashed else success
        for start, repeat, success, crashed in zip(episodes.starts, *columns, strict=True)
    }


def _row(label: str, members: Sequence[_Pair]) -> Row:
    outcomes = [outcome for pair in members for outcome in pair.outcomes.values()]
    n = len(outcomes)
    both, only_a, only_b, neither = (
        outcomes.count(outcome) for outcome in ((True, True), (True, False), (False, True), (False, False))
    )
    rate_a, rate_b = (both + only_a) / n, (both + only_b) / n
    low_a, high_a = wilson(both + only_a, n, CONFIDENCE)
    low_b, high_b = wilson(both + only_b, n, CONFIDENCE)
    low, high = paired_difference(both, only_a, only_b, neither, CONFIDENCE)
    gains: dict[tuple[str, str], int] = defaultdict(int)
    for pair in members:
        for (start, _), (a, b) in pair.outcomes.items():
            gains[pair.a.attrs.task, start] += b - a
    row = Row(
        task=label,
        a=None,
        b=None,
        seed=None,
        pairs=n,
        both=both,
        only_a=only_a,
        only_b=only_b,
        neither=neither,
        crashed=sum(pair.crashed for pair in members),
        rate_a=rate_a,
        low_a=low_a,
        high_a=high_a,
        rate_b=rate_b,
        low_b=low_b,
        high_b=high_b,
        difference=rate_b - rate_a,
        low=low,
        high=high,
        p=mcnemar(only_a, only_b),
        states=len(gains),
        p_states=mcnemar(sum(gain < 0 for gain in gains.values()), sum(gain > 0 for gain in gains.values())),
    )
    if len(members) > 1:
        return row
    pair = members[0]
    return replace(row, a=pair.a.path.as_posix(), b=pair.b.path.as_posix(), seed=pair.a.attrs.seed)
