"""The estimates of the KL to the reference, against numbers worked out by hand, and what their gradients do on average."""

from collections.abc import Callable
from math import log

import pytest
import torch
from torch import Tensor

from stages.algo.kl import kl_exact, kl_k1, kl_k3


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


def test_which_divergence_the_gradient_of_each_estimate_follows() -> None:
    """Over all tokens, weighted as a sample of pi would be: k1 pulls nowhere, k3 as KL[ref || pi], exact as KL[pi || ref]."""
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(5, generator=generator, dtype=torch.float64).requires_grad_()
    log_q = torch.randn(5, generator=generator, dtype=torch.float64).log_softmax(-1)

    def gradient(value: Callable[[Tensor], Tensor]) -> Tensor:
        (found,) = torch.autograd.grad(value(logits.log_softmax(-1)), logits)
        return found

    def sampled(estimate: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        return gradient(lambda log_p: (log_p.detach().exp() * estimate(log_p, log_q)).sum())

    torch.testing.assert_close(sampled(kl_k1), torch.zeros(5, dtype=torch.float64), atol=1e-12, rtol=0)
    torch.testing.assert_close(sampled(kl_k3), gradient(lambda log_p: (log_q.exp() * (log_q - log_p)).sum()))
    # d/dz_v sum p (log p - log q) of a softmax: p_v (log p_v - log q_v - KL)
    log_p = logits.detach().log_softmax(-1)
    by_hand = log_p.exp() * (log_p - log_q - kl_exact(log_p, log_q))
    torch.testing.assert_close(gradient(lambda x: kl_exact(x, log_q)), by_hand)
