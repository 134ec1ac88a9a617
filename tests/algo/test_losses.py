"""The loss of equations 3 and 9, and of -E[A log pi], against numbers worked out by hand, and its gradient."""

from math import exp, log
from typing import Any

import pytest
import torch

from stages.algo.losses import LossStats, policy_loss


def test_loss_of_equation_9_by_hand() -> None:
    log_prob = torch.tensor([[0.6, 0.2], [0.5, 0.5]]).log().requires_grad_()
    old = torch.tensor([[0.5, 0.4], [0.5, 0.4]]).log()
    kl = torch.tensor([[0.2, 0.4], [0.0, 0.2]])
    loss, stats = policy_loss(
        log_prob,
        old,
        advantage=torch.tensor([2.0, -1.0]),
        weight=torch.tensor([1.5, 0.5]),
        kl=kl,
        epsilon=0.0,
        beta=0.1,
    )
    # ratios 1.2, 0.5 | 1, 1.25. Mean of r A: 0.85 * 2 = 1.7 | 1.125 * -1 = -1.125
    # objective (1.5 * 1.7 + 0.5 * -1.125) / 2 = 0.99375; KL (1.5 * 0.3 + 0.5 * 0.1) / 2 = 0.25
    assert loss.item() == pytest.approx(-0.99375 + 0.1 * 0.25)
    assert stats.surrogate == pytest.approx(0.99375)
    assert stats.kl == pytest.approx(0.2)
    assert stats.clip_fraction == 0
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
    loss, stats = policy_loss(log_prob, torch.zeros(1, 2), one, one, torch.zeros(1, 2), epsilon=0.2, beta=0.0)
    assert loss.item() == pytest.approx(-1.15)
    assert stats.clip_fraction == 0.5
    loss.backward()
    torch.testing.assert_close(log_prob.grad, torch.tensor([[0.0, -1.1 / 2]]))  # a clipped ratio pulls no more


def test_loss_of_the_post_by_hand() -> None:
    # -E[A log pi]: means of A log pi over tokens 2 * -1.5 = -3 and -1 * -0.5 = 0.5; -(1.5 * -3 + 0.5 * 0.5) / 2 = 2.125
    log_prob = torch.tensor([[-1.0, -2.0], [-1.0, 0.0]], requires_grad=True)
    old = torch.full((2, 2), -9.0)  # who sampled plays no part, nor does the clip
    loss, stats = policy_loss(
        log_prob,
        old,
        torch.tensor([2.0, -1.0]),
        torch.tensor([1.5, 0.5]),
        torch.zeros(2, 2),
        epsilon=0.2,
        beta=0.0,
        objective="log_prob",
    )
    assert loss.item() == pytest.approx(2.125) and stats.clip_fraction == 0
    loss.backward()
    # -w A / (B tokens): -1.5 * 2 / 4 and 0.5 * 1 / 4
    torch.testing.assert_close(log_prob.grad, torch.tensor([[-0.75, -0.75], [0.125, 0.125]]))


def test_loss_per_action_has_one_ratio() -> None:
    # r = exp(0.1 + 0.2) per action, advantage 2
    one, zero = torch.ones(1), torch.zeros(1, 2)
    loss, _ = policy_loss(torch.tensor([[0.1, 0.2]]), zero, 2 * one, one, zero, epsilon=0.0, beta=0.0, per="action")
    assert loss.item() == pytest.approx(-2 * exp(0.3))


@pytest.mark.parametrize(
    "settings",
    [
        {"epsilon": 0.0, "per": "token"},
        {"epsilon": 0.0, "per": "action"},
        {"epsilon": 0.05, "per": "token"},
        {"epsilon": 0.05, "per": "action"},
        {"epsilon": 0.0, "per": "token", "objective": "log_prob"},
        {"epsilon": 0.0, "per": "action", "objective": "log_prob"},
    ],
)
def test_the_gradient_of_every_objective_is_its_finite_difference(settings: dict[str, Any]) -> None:
    generator = torch.Generator().manual_seed(3)
    log_prob, old, ref = 0.1 * torch.randn(3, 4, 7, generator=generator, dtype=torch.float64)
    advantage, weight = torch.randn(2, 4, generator=generator, dtype=torch.float64)

    def loss(x: torch.Tensor) -> torch.Tensor:
        return policy_loss(x, old, advantage, weight.abs(), (x - ref) ** 2, beta=0.3, **settings)[0]

    assert torch.autograd.gradcheck(loss, log_prob.requires_grad_())


def test_statistics_of_parts_pool_to_those_of_the_whole() -> None:
    # 1 and 3 decisions: 0.25 * 2 + 0.75 * 6 = 5
    one = LossStats(**dict.fromkeys(LossStats.__dataclass_fields__, 2.0))
    three = LossStats(**dict.fromkeys(LossStats.__dataclass_fields__, 6.0))
    assert vars(LossStats.pooled([one, three], [1, 3])) == dict.fromkeys(LossStats.__dataclass_fields__, 5.0)
    assert LossStats.pooled([three], [128]) == three
