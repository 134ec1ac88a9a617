"""The linear map with adapters beside it: what it computes, and the gradients that it writes out by hand."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from stages.params import Params
from stages.policy.adapted import Place, adapted_product
from tests.policy.test_learning import in_dtype, learn, score

# Of three joined maps of 5, 4 and 6 rows, the second has no adapter; ranks 2 and 3, s 0.5 and 1.
PLACES = [Place(slice(0, 5), slice(0, 2), 0.5), Place(slice(9, 15), slice(2, 5), 1.0)]


def draw(*shape: int, seed: int) -> Tensor:
    tensor = torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return tensor.requires_grad_()


def joined(masters: list[Tensor]) -> tuple[Tensor, Tensor]:
    (a, b), (c, d) = masters[:2], masters[2:]
    up = torch.zeros(15, 5, dtype=a.dtype)
    up[:5, :2], up[9:, 2:] = 0.5 * b.detach(), d.detach()
    return torch.cat([a, c]).detach(), up


@pytest.mark.parametrize("with_residual", [False, True])
@pytest.mark.parametrize("with_bias", [False, True])
def test_it_is_the_sum_that_lora_defines_and_so_are_its_gradients(with_residual: bool, with_bias: bool) -> None:
    rows, residual = draw(7, 8, seed=1), draw(7, 15, seed=2)
    weight, bias = draw(15, 8, seed=3).detach(), draw(15, seed=4).detach()
    masters = [draw(2, 8, seed=5), draw(5, 2, seed=6), draw(3, 8, seed=7), draw(6, 3, seed=8)]
    leaves = [rows, *masters, *([residual] if with_residual else [])]

    found = adapted_product(
        rows,
        residual if with_residual else None,
        weight,
        bias if with_bias else None,
        *joined(masters),
        PLACES,
        masters,
    )
    a, b, c, d = masters
    first, third = 0.5 * rows @ a.t() @ b.t(), rows @ c.t() @ d.t()
    expected = F.linear(rows, weight, bias if with_bias else None) + F.pad(first, (0, 10)) + F.pad(third, (9, 0))
    expected = expected + residual if with_residual else expected
    torch.testing.assert_close(found, expected)

    upstream = draw(7, 15, seed=9).detach()
    for got, want in zip(
        torch.autograd.grad(found, leaves, upstream), torch.autograd.grad(expected, leaves, upstream), strict=True
    ):
        torch.testing.assert_close(got, want)


def test_an_input_that_takes_no_gradient_costs_none() -> None:
    rows, weight = draw(7, 8, seed=1).detach(), draw(15, 8, seed=3).detach()
    masters = [draw(2, 8, seed=5), draw(5, 2, seed=6), draw(3, 8, seed=7), draw(6, 3, seed=8)]
    product = adapted_product(rows, None, weight, None, *joined(masters), PLACES, masters)
    with FlopCounterMode(display=False) as counter:
        product.sum().backward()
    # Of B x, of A and of B; not the 2 x 7 x 15 x 8 of the full matrix.
    assert counter.get_total_flops() == 2 * 7 * (15 * 5 + 5 * 8 + 15 * 5)


def test_adapters_that_change_in_place_are_joined_anew(embedded: Path, params: Params) -> None:
    """As an optimiser's step and a loaded adapter change them."""
    changed, fresh = (in_dtype("bfloat16", embedded, params) for _ in range(2))
    before = score(changed).log_prob.detach()
    gradients = learn(changed)
    for policy in (changed, fresh):
        with torch.no_grad():
            for name, parameter in policy.trainable_parameters():
                if "lora_B" in name:
                    parameter.mul_(3)
    after = score(changed).log_prob.detach()
    assert (after - before).abs().max() > 0.01
    torch.testing.assert_close(after, score(fresh).log_prob.detach(), rtol=0, atol=0)
    later = learn(changed)
    assert any(not torch.equal(later[name], gradient) for name, gradient in gradients.items())
