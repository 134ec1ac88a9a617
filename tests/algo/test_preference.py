"""GRAPE's preference loss on ranked trajectory pairs, against numbers worked out by hand and against autograd."""

from math import log

import numpy as np
import pytest
import torch

from stages.algo.preference import preference, ranked_pairs


def test_pairs_are_of_one_group_and_of_different_returns() -> None:
    # Group 0: returns 5, 9, 5; group 1: 7, 7. Ties and pairs across groups drop out.
    pairs = ranked_pairs([5.0, 9.0, 5.0, 7.0, 7.0], [0, 0, 0, 1, 1])
    assert pairs.tolist() == [[1, 0], [1, 2]]
    three = ranked_pairs([3.0, 1.0, 2.0], [0, 0, 0])
    assert three.tolist() == [[0, 1], [0, 2], [2, 1]]
    assert ranked_pairs([0.1 + 0.2, 0.3], [0, 0]).shape == (0, 2)  # a tie but for rounding


def test_preference_loss_by_hand() -> None:
    # beta 0.5, log-ratios 2 and 0: margin 1 for the better one. L = ln(1 + e^-1); sigma(-1) = 1 / (1 + e).
    found = preference([2.0, 0.0], np.array([[0, 1]]), beta=0.5)
    assert found.loss == pytest.approx(log(1 + np.exp(-1)))
    np.testing.assert_allclose(found.coefficient, [-0.5 / (1 + np.e), 0.5 / (1 + np.e)])
    assert found.accuracy == 1
    # At the reference every margin is zero: L = ln 2, pulls of beta / 2, and half right by lack of an opinion.
    at_reference = preference([0.0, 0.0], np.array([[1, 0]]), beta=0.1)
    assert at_reference.loss == pytest.approx(log(2)) and at_reference.accuracy == 0.5
    np.testing.assert_allclose(at_reference.coefficient, [0.05, -0.05])


def test_the_coefficients_are_the_gradient_by_every_trajectorys_log_prob() -> None:
    rng = np.random.default_rng(0)
    returns, group = rng.integers(4, size=12).astype(float), np.repeat([0, 1, 2], 4)
    log_ratio = rng.normal(size=12) * 30  # trajectories of hundreds of tokens
    pairs = ranked_pairs(returns, group)
    assert 6 < len(pairs) < 18  # some are ties
    x = torch.tensor(log_ratio, requires_grad=True)
    better, worse = torch.from_numpy(pairs).T
    loss = -torch.nn.functional.logsigmoid(0.1 * (x[better] - x[worse])).mean()
    loss.backward()
    found = preference(log_ratio, pairs, beta=0.1)
    assert found.loss == pytest.approx(loss.item())
    np.testing.assert_allclose(found.coefficient, x.grad, atol=1e-12)
    assert found.accuracy == pytest.approx((x[better] > x[worse]).double().mean().item())


def test_hopeless_margins_do_not_overflow() -> None:
    found = preference([-1e5, 1e5], np.array([[0, 1]]), beta=1.0)
    assert found.loss == pytest.approx(2e5)
    np.testing.assert_allclose(found.coefficient, [-1.0, 1.0])
