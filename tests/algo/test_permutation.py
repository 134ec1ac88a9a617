"""The permutation test of several policies, against cases counted by hand and the tests that it generalises."""

import numpy as np
import pytest

from stages.algo.mcnemar import mcnemar
from stages.algo.permutation import PERMUTATIONS, policies_differ


def test_all_exchanges_are_counted() -> None:
    # One success at each of two states. They fall to one and the same policy in 3 of 9 exchanges.
    assert policies_differ([[1, 0, 0], [1, 0, 0]]) == pytest.approx(1 / 3)
    # Three states: 3 of 27.
    assert policies_differ([[1, 0, 0]] * 3) == pytest.approx(1 / 9)
    assert policies_differ([[1, 0, 0], [0, 1, 0], [0, 0, 1]]) == 1.0


@pytest.mark.parametrize(("only_a", "only_b"), [(1, 4), (0, 6), (3, 3), (2, 9)])
def test_of_two_policies_it_is_mcnemars(only_a: int, only_b: int) -> None:
    table = [[1, 0]] * only_a + [[0, 1]] * only_b + [[1, 1]] * 5 + [[0, 0]] * 7
    assert policies_differ(table) == pytest.approx(mcnemar(only_a, only_b))


def test_it_approaches_cochrans_q() -> None:
    from scipy.stats import chi2

    rng = np.random.default_rng(3)
    x = (rng.random((60, 4)) < [0.5, 0.6, 0.7, 0.75]).astype(float)
    k, columns, rows = x.shape[1], x.sum(axis=0), x.sum(axis=1)
    q = (k - 1) * (k * (columns**2).sum() - columns.sum() ** 2) / (k * rows.sum() - (rows**2).sum())
    assert policies_differ(x) == pytest.approx(chi2.sf(q, k - 1), abs=0.02)


def test_equal_policies_are_told_apart_as_rarely_as_p_says() -> None:
    rng = np.random.default_rng(5)
    found = [policies_differ(rng.binomial(2, rng.random((30, 1)), (30, 3)), seed) for seed in range(60)]
    assert np.mean(np.array(found) < 0.2) == pytest.approx(0.2, abs=0.13)  # 2.5 deviations
    assert min(found) > 0.001


def test_what_cannot_be_by_chance_has_the_smallest_p_and_the_same_one_twice() -> None:
    apart = [[2, 0, 0]] * 40
    assert policies_differ(apart) == policies_differ(apart) == pytest.approx(1 / (PERMUTATIONS + 1))


def test_nothing_to_compare_is_an_error() -> None:
    assert policies_differ([[1, 1, 1], [0, 0, 0]]) == 1.0
    for shape in ((0, 3), (4, 1), (4,)):
        with pytest.raises(ValueError, match="states, policies"):
            policies_differ(np.zeros(shape))
