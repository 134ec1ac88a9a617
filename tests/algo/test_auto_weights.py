"""The weights of S and T from the group: by hand, against known contributions, and what must not change them."""

import numpy as np
import pytest

from stages.algo.advantages import step_advantage, trajectory_advantage
from stages.algo.auto_weights import auto_weights


def weights_of(reward: np.ndarray, mask: np.ndarray | None = None) -> tuple[float, float]:
    mask = np.ones(reward.shape, bool) if mask is None else mask
    return auto_weights(step_advantage(reward, mask), trajectory_advantage(np.where(mask, reward, 0).sum(1)), mask)


def test_weights_by_hand() -> None:
    s, t = np.array([[1.0, 1.0], [-1.0, -1.0]]), np.array([2.0, -2.0])
    # var(S): 4 squares of 1 = 4. rho = (1 + 1) / (1 + 1) = 1, so I = (1, 0), (-1, 0) and I.T = 2 + 2 = 4: slope 1.
    # The slope of T is 1/n = 1/2, so a1 : a2 = 1 : 1/2.
    np.testing.assert_allclose(auto_weights(s, t, np.ones((2, 2), bool)), (2 / 3, 1 / 3))
    # The second trajectory ends after one decision, and T = 2, -1: var(S) = 3, rho = 1 over the one pair that is left,
    # I = (1, 0), (-1), I.T = 2 + 1 = 3: slope 1, and 1/n = 1/1.5.
    ended = np.array([[True, True], [True, False]])
    np.testing.assert_allclose(auto_weights(s, np.array([2.0, -1.0]), ended), (0.6, 0.4))


def test_steps_that_look_good_and_lead_nowhere_get_no_weight() -> None:
    s, t = np.array([[1.0, -1.0, 1.0], [-1.0, 1.0, -1.0]]), np.array([-1.0, 1.0])
    assert auto_weights(s, t, np.ones((2, 3), bool)) == (0.0, 1.0)


def test_without_any_step_comparison_only_the_trajectory_counts() -> None:
    assert auto_weights(np.zeros((3, 4)), np.array([1.0, 0.0, -1.0]), np.ones((3, 4), bool)) == (0.0, 1.0)


@pytest.mark.parametrize("inertia", [0.0, 0.5, 0.9, 1.0])
def test_the_slopes_are_those_of_the_contributions_when_these_are_known(inertia: float) -> None:
    """Rewards R_it = inertia R_i,t-1 + e_it: decision t contributes c_it = e_it (1 + inertia + ... ) to the return."""
    trajectories, steps = 3000, 40
    rng = np.random.default_rng(0)
    effect = rng.normal(size=(trajectories, steps))
    reward, level = np.empty_like(effect), np.zeros(trajectories)
    for t in range(steps):
        level = inertia * level + effect[:, t]
        reward[:, t] = level
    lasting = np.array([sum(inertia**k for k in range(steps - t)) for t in range(steps)])
    contribution = effect * lasting / reward.sum(1).std(ddof=1)
    mask = np.ones(reward.shape, bool)
    s, t = step_advantage(reward, mask), trajectory_advantage(reward.sum(1))[:, None]
    slope_s = (s * contribution).sum() / (s**2).sum()
    slope_t = (t * contribution).sum() / (steps * (t**2).sum())

    a1, _ = weights_of(reward)
    assert slope_t == pytest.approx(1 / steps, rel=0.02)  # what the rule assumes
    assert a1 == pytest.approx(slope_s / (slope_s + slope_t), abs=0.05)


@pytest.mark.parametrize("trajectories", [2, 4, 8])
def test_weights_are_shares_and_the_same_in_any_unit_and_order(trajectories: int) -> None:
    rng = np.random.default_rng(trajectories)
    for _ in range(50):
        reward = rng.integers(-2, 5, (trajectories, 6)).astype(float)
        mask = np.arange(6) < rng.integers(1, 7, (trajectories, 1))
        a1, a2 = weights_of(reward, mask)
        assert 0 <= a1 <= 1 and a1 + a2 == pytest.approx(1)
        order = rng.permutation(trajectories)
        assert weights_of(reward[order], mask[order]) == pytest.approx((a1, a2))
        assert weights_of(reward * 7.0, mask) == pytest.approx((a1, a2))
