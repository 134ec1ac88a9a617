"""What must hold for any rewards: checked over random groups, with plain loops in place of the array code."""

import statistics

import numpy as np
import pytest

from stages.algo.advantages import group_advantage, step_advantage
from stages.algo.milestones import milestone_advantage

SEEDS = range(20)


def random_group(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rewards on a few levels (so that some compare equal), a mask of prefixes, and milestones. 2 to 8 trajectories."""
    rng = np.random.default_rng(seed)
    trajectories, steps = int(rng.integers(2, 9)), 12
    milestone = rng.integers(0, 4, (trajectories, steps))
    reward = np.array([-2.0, 2.0, 4.0, 8.0])[milestone]
    return reward, np.arange(steps) < rng.integers(1, steps + 1, (trajectories, 1)), milestone


def standardised(values: list[float]) -> list[float]:
    if len(values) < 2 or len(set(values)) == 1:
        return [0.0] * len(values)
    mean, std = statistics.fmean(values), statistics.stdev(values)
    return [(value - mean) / std for value in values]


@pytest.mark.parametrize("seed", SEEDS)
def test_step_advantage_is_equation_6_in_a_loop(seed: int) -> None:
    reward, mask, _ = random_group(seed)
    found = step_advantage(reward, mask)
    for t in range(reward.shape[1]):
        valid = [i for i in range(len(reward)) if mask[i, t]]
        assert [found[i, t] for i in valid] == pytest.approx(standardised([reward[i, t] for i in valid]))
        assert sum(found[i, t] for i in range(len(reward))) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("seed", SEEDS)
def test_milestone_advantage_is_the_same_over_other_peers_in_a_loop(seed: int) -> None:
    reward, mask, milestone = random_group(seed)
    found = milestone_advantage(reward, mask, milestone)
    decisions = [(i, t) for i in range(len(reward)) for t in range(reward.shape[1]) if mask[i, t]]
    for m in range(4):
        peers = [(i, t) for i, t in decisions if (milestone[i, t - 1] if t else 0) == m]
        assert [found[i, t] for i, t in peers] == pytest.approx(standardised([reward[i, t] for i, t in peers]))


@pytest.mark.parametrize("seed", SEEDS)
def test_advantages_follow_their_trajectories_and_ignore_unit_and_offset(seed: int) -> None:
    reward, mask, milestone = random_group(seed)
    order = np.random.default_rng(seed).permutation(len(reward))
    plain = step_advantage(reward, mask), milestone_advantage(reward, mask, milestone), group_advantage(reward[:, 0])
    moved = (
        step_advantage(reward[order], mask[order]),
        milestone_advantage(reward[order], mask[order], milestone[order]),
        group_advantage(reward[order, 0]),
    )
    other = 0.1 * reward + 3
    rescaled = step_advantage(other, mask), milestone_advantage(other, mask, milestone), group_advantage(other[:, 0])
    for expected, permuted, scaled in zip(plain, moved, rescaled, strict=True):
        np.testing.assert_allclose(permuted, expected[order], atol=1e-9)
        np.testing.assert_allclose(scaled, expected, atol=1e-9)
