"""Ratios, surrogates and weights of equations 1 to 4 and 9, and -E[A log pi], against numbers worked out by hand."""

from typing import Literal

import numpy as np
import pytest
import torch

from stages.algo.objectives import clipped_surrogate, decision_weights, log_prob_surrogate, ratio, surrogate


def test_ratio_per_token_and_per_action() -> None:
    new, old = torch.tensor([[0.6, 0.2]]).log(), torch.tensor([[0.5, 0.4]]).log()
    # tokens: 0.6 / 0.5 = 1.2 and 0.2 / 0.4 = 0.5; the action: 1.2 * 0.5 = 0.6
    torch.testing.assert_close(ratio(new, old), torch.tensor([[1.2, 0.5]]))
    torch.testing.assert_close(ratio(new, old, per="action"), torch.tensor([[0.6]]))


def test_old_log_prob_carries_no_gradient() -> None:
    new, old = torch.zeros(1, 2, requires_grad=True), torch.zeros(1, 2, requires_grad=True)
    ratio(new, old).sum().backward()
    assert old.grad is None
    torch.testing.assert_close(new.grad, torch.ones(1, 2))  # d exp(x - x0) = 1 at x = x0


def test_surrogates_clip_where_the_paper_clips() -> None:
    r = torch.tensor([1.5, 1.5, 0.5, 0.5, 1.1])
    adv = torch.tensor([2.0, -2.0, 2.0, -2.0, 2.0])
    torch.testing.assert_close(surrogate(r, adv), torch.tensor([3.0, -3.0, 1.0, -1.0, 2.2]))
    # epsilon 0.2: min(3, 1.2 * 2), min(-3, 1.2 * -2), min(1, 0.8 * 2), min(-1, 0.8 * -2), 1.1 lies inside
    torch.testing.assert_close(clipped_surrogate(r, adv, 0.2), torch.tensor([2.4, -3.0, 1.0, -1.6, 2.2]))


def test_log_prob_surrogate_by_hand() -> None:
    log_prob, advantage = torch.tensor([[-1.0, -2.0], [-0.5, 0.0]]), torch.tensor([[2.0], [-4.0]])
    torch.testing.assert_close(log_prob_surrogate(log_prob, advantage), torch.tensor([[-2.0, -4.0], [2.0, 0.0]]))
    torch.testing.assert_close(log_prob_surrogate(log_prob, advantage, "action"), torch.tensor([[-6.0], [2.0]]))


@pytest.mark.parametrize("per", ["token", "action"])
def test_the_ratio_and_the_log_prob_objective_have_one_gradient_where_the_policy_sampled(
    per: Literal["token", "action"],
) -> None:
    generator = torch.Generator().manual_seed(0)
    log_prob = torch.randn(3, 7, generator=generator, dtype=torch.float64).requires_grad_()
    advantage = torch.randn(3, 1, generator=generator, dtype=torch.float64)
    old = log_prob.detach()
    (of_ratio,) = torch.autograd.grad(surrogate(ratio(log_prob, old, per), advantage).mean(), log_prob)
    (of_log_prob,) = torch.autograd.grad(log_prob_surrogate(log_prob, advantage, per).mean(), log_prob)
    torch.testing.assert_close(of_ratio, of_log_prob)
    moved = old - 0.1  # there they part: the ratio remembers who sampled
    (elsewhere,) = torch.autograd.grad(surrogate(ratio(log_prob, moved, per), advantage).mean(), log_prob)
    assert (elsewhere - of_log_prob).abs().max() > 0.05 * of_log_prob.abs().max()


def test_decision_weights_average_trajectories_not_decisions() -> None:
    weights = decision_weights([1, 3, 0, 4])
    # N = 8 decisions, M = 3 trajectories that took any: 8/(3*1), 8/(3*3), none, 8/(3*4)
    np.testing.assert_allclose(weights, [8 / 3, 8 / 9, 0, 2 / 3])
    assert (weights * [1, 3, 0, 4]).sum() / 8 == pytest.approx(1)
    # 1/N sum w x of a value that is 6 in the first, 3 in the second and 0 in the third trajectory: (6 + 3 + 0) / 3
    assert (weights * [1 * 6, 3 * 3, 0, 4 * 0]).sum() / 8 == pytest.approx(3)
