"""PPO's advantages and its critic's loss, against numbers worked out by hand and the sums they stand for."""

import numpy as np
import pytest
import torch

from stages.algo.gae import explained_variance, gae, normalised
from stages.algo.value_loss import value_loss


def test_gae_by_hand() -> None:
    # gamma 0.5, lambda 0.5, rewards 1, 2, value 4, 3, then 8.
    # delta_1 = 2 + 0.5 * 8 - 3 = 3; delta_0 = 1 + 0.5 * 3 - 4 = -1.5; A_1 = 3; A_0 = -1.5 + 0.25 * 3 = -0.75
    np.testing.assert_allclose(gae([1.0, 2.0], [4.0, 3.0], 8.0, 0.5, 0.5), [-0.75, 3.0])


def test_gae_at_lambda_0_is_the_one_step_error_and_at_1_the_return_less_the_value() -> None:
    rng = np.random.default_rng(0)
    reward, value, last, gamma = rng.normal(size=6), rng.normal(size=6), 0.7, 0.9
    after = np.append(value[1:], last)
    np.testing.assert_allclose(gae(reward, value, last, gamma, 0.0), reward + gamma * after - value)
    returns = [sum(gamma**k * reward[t + k] for k in range(6 - t)) + gamma ** (6 - t) * last for t in range(6)]
    np.testing.assert_allclose(gae(reward, value, last, gamma, 1.0), np.array(returns) - value)


def test_a_perfect_critic_leaves_no_advantage() -> None:
    # Reward 2 for ever at gamma 0.9 is worth 20 everywhere.
    np.testing.assert_allclose(gae(np.full(5, 2.0), np.full(5, 20.0), 20.0, 0.9, 0.95), 0.0, atol=1e-12)


def test_normalised_advantages_have_no_mean_and_one_deviation_and_equal_ones_vanish() -> None:
    # mean 3, deviations -2, 0, 2, std sqrt(8/3)
    np.testing.assert_allclose(normalised(np.array([1.0, 3.0, 5.0])), np.array([-2, 0, 2]) / np.sqrt(8 / 3))
    np.testing.assert_array_equal(normalised(np.full(3, 0.1)), np.zeros(3))


def test_explained_variance() -> None:
    target = np.array([1.0, 2.0, 3.0])
    assert explained_variance(target + 5, target) == 1  # a constant offset is not variance
    assert explained_variance(np.full(3, 2.0), target) == 0
    # errors 2, 0, -2: variance 8/3 over 2/3
    assert explained_variance(target[::-1], target) == pytest.approx(-3)
    assert np.isnan(explained_variance(target, np.ones(3)))


def test_value_loss_by_hand_and_where_its_clip_stops_the_gradient() -> None:
    # V 2, 2 | R 3, 0 | V_old 1.5, 1.9, c 0.2. Held: 1.5 + 0.2 = 1.7 and 2 (0.1 is within).
    # errors max(1, 1.69) = 1.69 and max(4, 4); half the mean: 1.4225
    value = torch.tensor([2.0, 2.0], requires_grad=True)
    loss = value_loss(value, torch.tensor([3.0, 0.0]), torch.tensor([1.5, 1.9]), 0.2)
    assert loss.item() == pytest.approx(1.4225)
    loss.backward()
    # The first has moved beyond the clip towards its target and gains no more; the second pulls with (V - R) / B.
    torch.testing.assert_close(value.grad, torch.tensor([0.0, 1.0]))
    assert value_loss(value, torch.tensor([3.0, 0.0]), torch.tensor([1.5, 1.9]), 0.0).item() == pytest.approx(1.25)
