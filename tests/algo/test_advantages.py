"""Equations 5 to 8, against numbers worked out by hand."""

import numpy as np
import pytest

from stages.algo.advantages import (
    ended_in_success,
    fuse,
    group_advantage,
    hold_success,
    step_advantage,
    trajectory_advantage,
    trajectory_return,
)


def test_group_advantage_divides_by_the_sample_deviation() -> None:
    # R = 1, 2, 3, 6: mean 3, deviations -2, -1, 0, 3, squares 4 + 1 + 0 + 9 = 14, std = sqrt(14 / 3) = 2.160247
    expected = [-0.9258201, -0.4629100, 0.0, 1.3887301]
    np.testing.assert_allclose(group_advantage([1, 2, 3, 6]), expected, atol=1e-7)
    np.testing.assert_array_equal(trajectory_advantage(np.array([1.0, 2, 3, 6])), group_advantage([1, 2, 3, 6]))


def test_step_advantage_compares_the_trajectories_that_are_still_valid() -> None:
    reward = [[1, 1, 4], [3, 1, 99], [5, 1, 0]]
    mask = [[True, True, True], [True, True, False], [True, True, True]]
    # t=0: mean 3, deviations -2, 0, 2, std = sqrt(8 / 2) = 2.           -> -1, 0, 1
    # t=1: all equal                                                     -> 0, 0, 0
    # t=2: 4 and 0 are valid: mean 2, deviations 2, -2, std = sqrt(8/1)  -> 1/sqrt 2, (masked) 0, -1/sqrt 2
    half = 0.5**0.5
    np.testing.assert_allclose(step_advantage(reward, mask), [[-1, 0, half], [0, 0, 0], [1, 0, -half]], atol=1e-12)


@pytest.mark.parametrize("value", [0.0, 0.1, 2.0, 1e6, -0.3])
def test_equal_rewards_give_zero_and_not_rounding_noise(value: float) -> None:
    # The mean of three 0.1 is 0.10000000000000002; an exact test for zero variance would give advantages of size 1.
    assert not group_advantage([value] * 3).any()
    assert not step_advantage(np.full((3, 5), value), np.ones((3, 5), bool)).any()


def test_returns_that_differ_only_by_the_order_of_summation_are_equal() -> None:
    # (0.1 + 0.2) + 0.3 = 0.6000000000000001 and 0.1 + (0.2 + 0.3) = 0.6
    assert 0.1 + 0.2 + 0.3 != 0.1 + (0.2 + 0.3)
    assert not group_advantage([0.1 + 0.2 + 0.3, 0.1 + (0.2 + 0.3)]).any()


def test_a_small_real_difference_counts_in_full() -> None:
    # Two values always standardise to -+ 1/sqrt 2, however close they are.
    np.testing.assert_allclose(group_advantage([100.0, 100.01]), [-(0.5**0.5), 0.5**0.5])


def test_fewer_than_two_to_compare_give_zero() -> None:
    np.testing.assert_array_equal(group_advantage([7.0]), [0.0])
    np.testing.assert_array_equal(step_advantage([[7.0, 7.0], [3.0, 3.0]], [[True, False], [False, False]]), 0)


def test_fuse_weighs_step_and_trajectory() -> None:
    # a1 S + a2 T: row 0: 0.3 * (1, -1) + 0.7 * 2, row 1: 0.3 * (0, 2) + 0.7 * -1
    fused = fuse(np.array([[1.0, -1.0], [0.0, 2.0]]), np.array([2.0, -1.0]), a1=0.3, a2=0.7)
    np.testing.assert_allclose(fused, [[1.7, 1.1], [-0.7, -0.1]])


def test_return_sums_valid_steps_only() -> None:
    np.testing.assert_allclose(trajectory_return([[1, 2, 4], [1, np.nan, 9]], [[1, 1, 1], [1, 0, 0]]), [7, 1])


def test_padding_changes_nothing() -> None:
    rng = np.random.default_rng(0)
    reward, length = rng.integers(0, 5, (4, 6)).astype(float), np.array([6, 3, 4, 6])
    mask = np.arange(6) < length[:, None]
    success = mask & (np.arange(6) == length[:, None] - 1) & np.array([[True], [True], [False], [False]])
    garbage = np.full((4, 3), np.nan)
    padded = (np.hstack([reward, garbage]), np.hstack([mask, garbage > 0]), np.hstack([success, garbage > 0]))

    plain = hold_success(reward, mask, success)
    held = hold_success(*padded)
    np.testing.assert_array_equal(held[1][:, :6], plain[1])
    assert not held[1][:, 6:].any()
    np.testing.assert_array_equal(trajectory_return(*held), trajectory_return(*plain))
    np.testing.assert_array_equal(step_advantage(*held)[:, :6], step_advantage(*plain))
    assert not step_advantage(*held)[:, 6:].any()


def test_held_success_makes_finishing_early_never_worse() -> None:
    # Both reach reward 3 and succeed, the first at t=1, the second at t=3; the third fails at t=2 and is not held.
    reward = [[1, 3, 0, 0], [1, 1, 1, 3], [1, 2, 2, 0]]
    mask = np.array([[1, 1, 0, 0], [1, 1, 1, 1], [1, 1, 1, 0]], bool)
    success = np.array([[0, 1, 0, 0], [0, 0, 0, 1], [0, 0, 0, 0]], bool)
    assert trajectory_return(reward, mask)[0] < trajectory_return(reward, mask)[1]  # 4 < 6: what holding mends

    held_reward, held_mask = hold_success(reward, mask, success)
    np.testing.assert_array_equal(held_reward[0], [1, 3, 3, 3])
    np.testing.assert_array_equal(held_mask, [[1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 1, 0]])
    np.testing.assert_array_equal(trajectory_return(held_reward, held_mask), [10, 6, 5])


def test_hold_success_leaves_a_success_that_was_lost_again() -> None:
    # The goal held after t=0 but not at the end: nothing to keep.
    reward, mask = np.array([[5.0, 1, 0], [0, 0, 0]]), np.array([[1, 1, 0], [1, 1, 1]], bool)
    success = np.array([[1, 0, 0], [0, 0, 0]], bool)
    np.testing.assert_array_equal(hold_success(reward, mask, success)[1], mask)
    np.testing.assert_array_equal(ended_in_success(mask, success), [False, False])


def test_success_is_that_of_the_last_decision() -> None:
    mask = np.array([[1, 1, 0], [1, 1, 1], [1, 0, 0]], bool)
    success = np.array([[0, 1, 0], [0, 1, 0], [0, 1, 1]], bool)  # at the end; lost again; only in the padding
    np.testing.assert_array_equal(ended_in_success(mask, success), [True, False, False])
