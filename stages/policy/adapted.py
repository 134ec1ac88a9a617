"""A linear map with low-rank adapters beside it, and the gradients that LoRA needs of it.

Left to autograd, the casts and joins of the adapters' small matrices and their gradients are most of the kernels that an update
launches on a GPU, each of which takes the processor longer to launch than the GPU to run.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Place:
    """Where one adapter sits among the maps that are joined."""

    out: slice  # rows of the joined weight that it adapts
    rank: slice  # its rows of the joined A, and columns of the joined B
    scaling: float  # s = alpha / rank


def adapted_product(
    rows: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    down: Tensor,
    up: Tensor,
    places: Sequence[Place],
    masters: Sequence[Tensor],
) -> Tensor:
    """residual + x W^T + b + (x A^T)(s B)^T, with gradients for x, the residual, and each adapter's own A and B.

    Args:
        rows: x (rows, in).
        residual: (rows, out), or None.
        weight, bias: W (out, in) and b (out) of all maps, joined; they take no gradient.
        down, up: A (ranks, in) and s B (out, ranks) of all adapters, joined and in the dtype of x, zero where an adapter has
            no part. What is computed with.
        places: one for each adapter.
        masters: A and B of each adapter in turn, of any dtype. What gradients are given to, in their dtype.
    """
    result: Tensor = _AdaptedProduct.apply(rows, residual, weight, bias, down, up, places, *masters)
    return result


class _AdaptedProduct(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        residual: Tensor | None,
        weight: Tensor,
        bias: Tensor | None,
        down: Tensor,
        up: Tensor,
        places: Sequence[Place],
        *masters: Tensor,
    ) -> Tensor:
        if residual is None:
            result = F.linear(rows, weight, bias)
        else:
            result = torch.addmm(residual, rows, weight.t())
            result = result if bias is None else result.add_(bias)
        low = F.linear(rows, down)
        result.addmm_(low, up.t())
        ctx.save_for_backward(rows, low, weight, down, up)
        ctx.places, ctx.dtypes = places, [master.dtype for master in masters]
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        rows, low, weight, down, up = ctx.saved_tensors
        of_result = gradients[0]
        of_low = of_result @ up
        of_rows = None
        if ctx.needs_input_grad[0]:
            of_rows = (of_result @ weight).addmm_(of_low, down)
        of_down, of_up = of_low.t() @ rows, of_result.t() @ low
        of_masters = []
        for index, place in enumerate(ctx.places):
            a, b = (ctx.dtypes[2 * index + which] for which in (0, 1))
            of_b = of_up[place.out, place.rank].to(b)
            of_masters += [of_down[place.rank].to(a), of_b if place.scaling == 1 else of_b * place.scaling]
        of_residual = of_result if ctx.needs_input_grad[1] else None
        return of_rows, of_residual, None, None, None, None, None, *of_masters
