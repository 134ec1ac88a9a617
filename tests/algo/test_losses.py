"""Equations 1 to 4 and 9 and the KL estimates, against numbers worked out by hand, and their gradients."""

from collections.abc import Callable
from math import exp, log

import numpy as np
import pytest
import torch
from torch import Tensor

from stages.algo.losses import (
    LossStats,
    clipped_surrogate,
    decision_weights,
    kl_exact,
    kl_k1,
    kl_k3,
    ratio,
    surrogate,
    tgrpo_loss,
)


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


def test_kl_estimates_by_hand() -> None:
    p, q = torch.tensor([[[0.75, 0.25]]]), torch.tensor([[[0.5, 0.5]]])
    # exact: 0.75 ln 1.5 + 0.25 ln 0.5 = 0.304099 - 0.173287 = 0.130812
    torch.testing.assert_close(kl_exact(p.log(), q.log()), torch.tensor([[0.75 * log(1.5) + 0.25 * log(0.5)]]))
    # sampled token 0: k1 = ln 1.5; k3 = 2/3 - ln(2/3) - 1
    torch.testing.assert_close(kl_k1(p[..., 0].log(), q[..., 0].log()), torch.tensor([[log(1.5)]]))
    torch.testing.assert_close(kl_k3(p[..., 0].log(), q[..., 0].log()), torch.tensor([[2 / 3 - log(2 / 3) - 1]]))


@pytest.mark.parametrize("estimate", [kl_k1, kl_k3])
def test_kl_estimates_are_unbiased(estimate: Callable[[Tensor, Tensor], Tensor]) -> None:
    logits = torch.randn(2, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    log_p, log_q = logits.log_softmax(-1)
    # The expectation over all 6 tokens under p, in place of a sample.
    torch.testing.assert_close((log_p.exp() * estimate(log_p, log_q)).sum(), kl_exact(log_p, log_q))


def test_kl_is_zero_and_flat_at_the_reference() -> None:
    log_p = torch.tensor([[0.3, 0.7]]).log().requires_grad_()
    (kl_k3(log_p, log_p.detach()).sum() + kl_exact(log_p, log_p.detach()).sum()).backward()
    # k3: d/dx (exp(q - x) - (q - x) - 1) = -1 + 1 = 0 at x = q. exact: d/dx e^x (x - q) = e^x (x - q + 1) = p at x = q,
    # and moving along the simplex, where the p sum to one, that is flat.
    torch.testing.assert_close(log_p.grad, torch.tensor([[0.3, 0.7]]))


def test_decision_weights_average_trajectories_not_decisions() -> None:
    weights = decision_weights([1, 3, 0, 4])
    # N = 8 decisions, M = 3 trajectories that took any: 8/(3*1), 8/(3*3), none, 8/(3*4)
    np.testing.assert_allclose(weights, [8 / 3, 8 / 9, 0, 2 / 3])
    assert (weights * [1, 3, 0, 4]).sum() / 8 == pytest.approx(1)
    # 1/N sum w x of a value that is 6 in the first, 3 in the second and 0 in the third trajectory: (6 + 3 + 0) / 3
    assert (weights * [1 * 6, 3 * 3, 0, 4 * 0]).sum() / 8 == pytest.approx(3)


def test_loss_of_equation_9_by_hand() -> None:
    log_prob = torch.tensor([[0.6, 0.2], [0.5, 0.5]]).log().requires_grad_()
    old = torch.tensor([[0.5, 0.4], [0.5, 0.4]]).log()
    kl = torch.tensor([[0.2, 0.4], [0.0, 0.2]])
    loss, stats = tgrpo_loss(
        log_prob,
        old,
        advantage=torch.tensor([2.0, -1.0]),
        weight=torch.tensor([1.5, 0.5]),
        kl=kl,
        entropy=torch.ones(2, 2),
        epsilon=0.0,
        beta=0.1,
    )
    # ratios 1.2, 0.5 | 1, 1.25. Mean of r A: 0.85 * 2 = 1.7 | 1.125 * -1 = -1.125
    # objective (1.5 * 1.7 + 0.5 * -1.125) / 2 = 0.99375; KL (1.5 * 0.3 + 0.5 * 0.1) / 2 = 0.25
    assert loss.item() == pytest.approx(-0.99375 + 0.1 * 0.25)
    assert stats.surrogate == pytest.approx(0.99375)
    assert stats.kl == pytest.approx(0.2)
    assert stats.clip_fraction == 0
    assert (stats.ratio_mean, stats.ratio_max) == (pytest.approx(0.9875), pytest.approx(1.25))
    # k3 from old to new: r - 1 - ln r, mean of 0.2 - ln 1.2, -0.5 - ln 0.5, 0, 0.25 - ln 1.25
    expected = (0.2 - log(1.2) - 0.5 - log(0.5) + 0.25 - log(1.25)) / 4
    assert stats.approx_kl == pytest.approx(expected, abs=1e-6)
    loss.backward()
    # d loss / d log_prob = -w/B * r A / 2 tokens: first token -1.5/2 * 1.2 * 2 / 2 = -0.9
    assert log_prob.grad is not None
    assert log_prob.grad[0, 0].item() == pytest.approx(-0.9)


def test_loss_of_equation_3_by_hand() -> None:
    # ratios 1.5 and 1.1 with advantage 1, epsilon 0.2: min(1.5, 1.2) and 1.1, mean 1.15; half the ratios lie outside.
    log_prob = torch.tensor([[log(1.5), log(1.1)]], requires_grad=True)
    one = torch.ones(1)
    loss, stats = tgrpo_loss(
        log_prob, torch.zeros(1, 2), one, one, torch.zeros(1, 2), torch.zeros(1, 2), epsilon=0.2, beta=0.0
    )
    assert loss.item() == pytest.approx(-1.15)
    assert stats.clip_fraction == 0.5
    loss.backward()
    torch.testing.assert_close(log_prob.grad, torch.tensor([[0.0, -1.1 / 2]]))  # a clipped ratio pulls no more


def test_loss_per_action_has_one_ratio() -> None:
    # r = exp(0.1 + 0.2) per action, advantage 2
    one = torch.ones(1)
    loss, _ = tgrpo_loss(
        torch.tensor([[0.1, 0.2]]),
        torch.zeros(1, 2),
        2 * one,
        one,
        torch.zeros(1, 2),
        torch.zeros(1, 2),
        epsilon=0.0,
        beta=0.0,
        per="action",
    )
    assert loss.item() == pytest.approx(-2 * exp(0.3))


def test_statistics_of_parts_pool_to_those_of_the_whole() -> None:
    # 1 and 3 decisions: 0.25 * 2 + 0.75 * 6 = 5, but the largest ratio is the largest of either.
    one = LossStats(**dict.fromkeys(LossStats.__dataclass_fields__, 2.0))
    three = LossStats(**dict.fromkeys(LossStats.__dataclass_fields__, 6.0))
    expected = {**dict.fromkeys(LossStats.__dataclass_fields__, 5.0), "ratio_max": 6.0}
    assert vars(LossStats.pooled([one, three], [1, 3])) == expected
    assert LossStats.pooled([three], [128]) == three
