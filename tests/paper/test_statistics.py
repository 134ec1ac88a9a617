"""Rates and paired tests, against numbers computed by hand."""

import pytest

from stages.paper.statistics import (
    Rate,
    base_rate,
    best_rate,
    mean_over_tasks,
    paired,
    paired_methods,
    spread,
    trained_rate,
)
from tests.paper.hand_made import outcome, result


def test_a_crash_is_neither_success_nor_failure() -> None:
    rate = Rate.of([outcome("110x"), outcome("0x")])
    assert rate is not None
    assert (rate.successes, rate.episodes, rate.crashes) == (2, 4, 2)
    assert rate.rate == 0.5
    assert Rate.of([outcome("xx")]) is None


def test_pairs_are_pooled_over_runs() -> None:
    #            state 0  1  2  3  4  5
    # seed 0      0->1 0->1 0->1 1->1 0->0 1->0
    # seed 1      0->1 0->1 0->1 1->1 0->0 1->1
    pooled = paired([result("000101", "111100", seed=0), result("000101", "111101", seed=1)], 0.0)
    assert pooled is not None
    assert (pooled.runs, pooled.pairs) == (2, 12)
    assert (pooled.both, pooled.only_base, pooled.only_trained, pooled.neither) == (3, 1, 6, 2)
    assert pooled.rise == pytest.approx(5 / 12)
    # 7 discordant pairs, at most one of them the other way: 2 (1 + 7) / 2^7
    assert pooled.p == pytest.approx(2 * 8 / 128)
    # states 0, 1, 2 gained, 5 lost once, 3 and 4 did not change: 2 (1 + 4) / 2^4
    assert (pooled.states, pooled.states_worse, pooled.states_better) == (6, 1, 3)
    assert pooled.p_states == pytest.approx(10 / 16)


def test_a_state_of_another_task_is_another_state() -> None:
    pooled = paired([result("0", "1"), result("1", "0", task="libero_object/7")], 0.0)
    assert pooled is not None
    assert (pooled.states, pooled.states_worse, pooled.states_better) == (2, 1, 1)


def test_a_pair_with_a_crash_at_either_end_is_left_out() -> None:
    pooled = paired([result("0x01", "1100")], 0.0)
    assert pooled is not None
    assert (pooled.pairs, pooled.only_trained, pooled.only_base) == (3, 1, 1)
    assert paired([result("x", "1")], 0.0) is None


def test_episodes_are_paired_by_state_and_repeat() -> None:
    # two states, two repeats: repeat 0 of state 0 fails before and after; repeat 1 of state 0 is won
    pooled = paired([result("0", "0", sampled=("0011", "0110"))], 1.0)
    assert pooled is not None
    assert (pooled.both, pooled.only_base, pooled.only_trained, pooled.neither) == (1, 1, 1, 1)
    assert pooled.states == 2
    assert paired([result("0", "1")], 1.0) is None  # never evaluated at this temperature


def test_methods_are_compared_where_both_have_run() -> None:
    first = [result("00", "10", seed=0), result("00", "00", seed=1)]
    second = [result("00", "11", seed=0), result("00", "11", seed=2)]
    pooled = paired_methods(first, second, 0.0)
    assert pooled is not None
    assert (pooled.runs, pooled.pairs, pooled.only_base, pooled.only_trained) == (1, 2, 0, 1)


def test_the_greedy_base_counts_once_however_many_seeds_start_from_it() -> None:
    runs = [result("1100", "1111", seed=s, sampled=("1000", "1111")) for s in (0, 1)]
    greedy, sampled = base_rate(runs, "libero_object/6", 0.0), base_rate(runs, "libero_object/6", 1.0)
    assert greedy and (greedy.successes, greedy.episodes) == (2, 4)
    assert sampled and (sampled.successes, sampled.episodes) == (2, 8)  # its draws differ from seed to seed
    assert base_rate(runs, "libero_object/7", 0.0) is None


def test_best_of_is_the_best_of_the_seeds() -> None:
    runs = [result("0000", after, seed=s) for s, after in enumerate(("1000", "1110", "1100"))]
    best, all_runs = best_rate(runs, "libero_object/6", 0.0), trained_rate(runs, "libero_object/6", 0.0)
    assert best and best.rate == 0.75
    assert all_runs and all_runs.rate == 0.5


def test_every_task_counts_the_same_in_the_mean() -> None:
    rates = [Rate.of([outcome("1111")]), Rate.of([outcome("10")])]
    assert mean_over_tasks(rates) == 0.75  # not 5/6
    assert mean_over_tasks([*rates, None]) is None
    assert mean_over_tasks([]) is None


def test_methods_are_compared_on_the_runs_and_episodes_that_all_have() -> None:
    none, first = "0000", "11x0"
    found = spread(
        [
            [result(none, first, seed=0), result(none, "1111", seed=1)],  # seed 1 has no peers
            [result(none, "0000", seed=0)],
            [result(none, "0000", seed=0), result(none, "1111", task="libero_object/7")],
        ],
        0.0,
    )
    assert found is not None
    assert (found.methods, found.runs, found.episodes) == (3, 1, 3)  # the third state crashed for one
    assert (found.lowest, found.highest) == (0, pytest.approx(2 / 3))
    assert found.p == pytest.approx(1 / 3)  # both successes to one policy: 3 of 9 exchanges


def test_repeats_of_a_start_state_stay_together() -> None:
    sampled = [(result("0", "0", sampled=("00", after)),) for after in ("11", "00", "00")]
    found = spread(sampled, 1.0)
    assert found is not None and (found.episodes, found.highest, found.p) == (2, 1.0, 1.0)  # one state tells nothing
    assert spread(sampled, 0.5) is None
    assert spread([[result("0", "0", seed=0)], [result("0", "0", seed=1)]], 0.0) is None
