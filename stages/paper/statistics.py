"""Rates and paired tests over the cells of a table. All cells count; none is chosen."""

import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from stages.algo.intervals import paired_difference, wilson
from stages.algo.mcnemar import mcnemar
from stages.algo.permutation import policies_differ
from stages.paper.results import Outcome, Result, successes


@dataclass(frozen=True)
class Rate:
    """A success rate with its 95% Wilson interval, 0 to 1."""

    successes: int
    episodes: int  # that count: crashes of the simulator do not
    crashes: int
    low: float
    high: float

    @property
    def rate(self) -> float:
        return self.successes / self.episodes

    @classmethod
    def of(cls, outcomes: Sequence[Outcome]) -> "Rate | None":
        """Of evaluations together; None where no episode counts."""
        won, count, crashes = successes(outcomes)
        return cls(won, count, crashes, *wilson(won, count)) if count else None


@dataclass(frozen=True)
class Paired:
    """Base against trained on the same start states with the same sampling seeds. `rise` is a difference of rates."""

    runs: int
    pairs: int
    both: int
    only_base: int
    only_trained: int
    neither: int
    rise: float
    low: float  # Newcombe's 95% interval of the rise
    high: float
    p: float  # McNemar, exact, two-sided; takes every pair as independent
    states: int
    states_worse: int  # start states on which fewer episodes succeeded after training
    states_better: int
    p_states: float  # sign test over these start states, which does not take episodes from one state as independent


@dataclass(frozen=True)
class Spread:
    """Trained checkpoints of several methods on the same start states with the same sampling seeds. Rates are 0 to 1."""

    methods: int
    runs: int  # of each
    episodes: int  # of each, that count for all
    lowest: float
    highest: float
    p: float  # of `policies_differ`


def paired(results: Sequence[Result], temperature: float) -> Paired | None:
    """Base against trained: pools the pairs (task, seed, start state, repeat) of all results; None where no pair counts.

    A pair with a crash is left out. Seeds share the base's greedy episodes, and repeats share start states, so the
    pairs are not independent of each other; the sign test sums them up within each (task, start state) first.
    """
    ends = [(result.task, result.outcomes(temperature)) for result in results]
    return _pool([(task, *end) for task, end in ends if end is not None])


def paired_methods(first: Sequence[Result], second: Sequence[Result], temperature: float) -> Paired | None:
    """The trained checkpoints of two methods, where both have run with one task and seed; `base` is the first method."""
    own = {(result.task, result.seed): result for result in first}
    runs = []
    for result in second:
        other = own.get((result.task, result.seed))
        ends = (other.outcomes(temperature), result.outcomes(temperature)) if other else (None, None)
        if ends[0] is not None and ends[1] is not None:
            runs.append((result.task, ends[0][1], ends[1][1]))
    return _pool(runs)


def spread(of_methods: Sequence[Sequence[Result]], temperature: float) -> Spread | None:
    """Whether methods differ at all, from the tasks and seeds that all of them have run; None without such.

    An episode that crashed for one method is left out for all. Seeds and repeats of a start state of a task stay together.
    """
    by_run = [{(result.task, result.seed): result for result in results} for results in of_methods]
    shared = [run for run in by_run[0] if all(run in runs for runs in by_run)]
    won: defaultdict[tuple[str, str], list[tuple[bool, ...]]] = defaultdict(list)
    counted_runs = 0
    for task, seed in shared:
        ends = [runs[task, seed].outcomes(temperature) for runs in by_run]
        after = [{(state, repeat): of for state, repeat, of in end[1].episodes} for end in ends if end is not None]
        if len(after) < len(by_run):
            continue
        counted_runs += 1
        for state, repeat in after[0]:
            episode = [episodes.get((state, repeat)) for episodes in after]
            known = tuple(of for of in episode if of is not None)
            if len(known) == len(by_run):
                won[task, state].append(known)
    if len(by_run) < 2 or not won:
        return None
    counts = np.array([np.sum(episodes, axis=0) for episodes in won.values()])
    n = sum(map(len, won.values()))
    rates = counts.sum(axis=0) / n
    return Spread(len(by_run), counted_runs, n, float(rates.min()), float(rates.max()), policies_differ(counts))


def _pool(runs: Sequence[tuple[str, Outcome, Outcome]]) -> Paired | None:
    """Pools runs: the task, and the two evaluations that are paired by start state and repeat."""
    counts = {(True, True): 0, (True, False): 0, (False, True): 0, (False, False): 0}
    gains: defaultdict[tuple[str, str], int] = defaultdict(int)
    for task, before, after in runs:
        trained = {(state, repeat): won for state, repeat, won in after.episodes}
        for state, repeat, won in before.episodes:
            then = trained.get((state, repeat))
            if won is None or then is None:
                continue
            counts[won, then] += 1
            gains[task, state] += int(then) - int(won)
    n = sum(counts.values())
    if not n:
        return None
    both, only_base = counts[True, True], counts[True, False]
    only_trained, neither = counts[False, True], counts[False, False]
    worse = sum(gain < 0 for gain in gains.values())
    better = sum(gain > 0 for gain in gains.values())
    return Paired(
        len(runs),
        n,
        both,
        only_base,
        only_trained,
        neither,
        (only_trained - only_base) / n,
        *paired_difference(both, only_base, only_trained, neither),
        mcnemar(only_base, only_trained),
        len(gains),
        worse,
        better,
        mcnemar(worse, better),
    )


def trained_rate(results: Sequence[Result], task: str, temperature: float) -> Rate | None:
    """Of the trained checkpoints of a task, all seeds together."""
    ends = [result.outcomes(temperature) for result in results if result.task == task]
    return Rate.of([end[1] for end in ends if end is not None])


def base_rate(results: Sequence[Result], task: str, temperature: float) -> Rate | None:
    """Of a task's base checkpoint, each of its evaluations once: one for all seeds when greedy, one for each seed else."""
    distinct: dict[int, Outcome] = {}
    for result in results:
        ends = result.outcomes(temperature)
        if result.task == task and ends is not None:
            distinct.setdefault(result.seed if temperature else 0, ends[0])
    return Rate.of(list(distinct.values()))


def best_rate(results: Sequence[Result], task: str, temperature: float) -> Rate | None:
    """Of the seed that did best on the very episodes it is judged by: the paper's protocol, biased upwards."""
    ends = [result.outcomes(temperature) for result in results if result.task == task]
    rates = [rate for end in ends if end is not None and (rate := Rate.of([end[1]]))]
    return max(rates, key=lambda rate: rate.rate, default=None)


def mean_over_tasks(rates: Sequence[Rate | None]) -> float | None:
    """The mean of the tasks' rates, each task counting the same; None where one is missing."""
    known = [rate.rate for rate in rates if rate is not None]
    return statistics.fmean(known) if known and len(known) == len(rates) else None
