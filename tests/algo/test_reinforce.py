"""Reward-to-go and REINFORCE's advantage, against numbers worked out by hand and a plain loop."""

import numpy as np
import pytest

from stages.algo.reinforce import reinforce_advantage, reward_to_go

REWARD = np.array([[1.0, 2.0, 4.0], [3.0, 5.0, np.nan]])
MASK = np.array([[True, True, True], [True, True, False]])


def test_reward_to_go_by_hand() -> None:
    # Half counts one decision later: 4; 2 + 4/2 = 4; 1 + 4/2 = 3. And 5; 3 + 5/2 = 5.5; padding is zero, not the nan it holds.
    np.testing.assert_array_equal(reward_to_go(REWARD, MASK, 0.5), [[3, 4, 4], [5.5, 5, 0]])
    np.testing.assert_array_equal(reward_to_go(REWARD, MASK, 0.0), [[1, 2, 4], [3, 5, 0]])
    np.testing.assert_array_equal(reward_to_go(REWARD, MASK, 1.0)[:, 0], [7, 8])  # the return


@pytest.mark.parametrize("gamma", [0.0, 0.9, 1.0])
def test_reward_to_go_is_the_discounted_sum_of_what_follows(gamma: float) -> None:
    rng = np.random.default_rng(1)
    reward, length = rng.normal(size=(3, 7)), np.array([7, 1, 4])
    mask = np.arange(7) < length[:, None]
    found = reward_to_go(reward, mask, gamma)
    for i in range(3):
        for t in range(7):
            follows = sum(gamma ** (k - t) * reward[i, k] for k in range(t, length[i]))
            assert found[i, t] == pytest.approx(follows, abs=1e-12)


def test_advantage_by_hand() -> None:
    # The five G = 1, 2, 3, 4, 5: mean 3, squares 4 + 1 + 0 + 1 + 4 = 10, std = sqrt(10 / 4).
    to_go = np.array([[1.0, 5.0, 3.0], [2.0, 4.0, np.nan]])
    std = 2.5**0.5
    np.testing.assert_allclose(reinforce_advantage(to_go, MASK), np.array([[-2, 2, 0], [-1, 1, 0]]) / std)


def test_equal_rewards_to_go_give_no_advantage() -> None:
    assert not reinforce_advantage(np.full((2, 3), 0.1), MASK).any()
