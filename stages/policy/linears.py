"""The linear maps of a model as acting and learning run them: adapters folded in, maps of one input joined into one.

transformers' modules and peft's adapters hold the weights and are what is loaded, trained and saved. These classes compute
with the same tensors in fewer and larger kernels: query, key and value as one product, adapters without passes of their own
over the activations.
"""

import copy
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from peft.tuners.lora import Linear as LoraLinear
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.nn import functional as F

from stages.policy.adapted import Place, adapted_product

Module = TypeVar("Module", bound=nn.Module)


class JointLinear(nn.Module):
    """Linear maps of one input, their rows stacked: x -> [W_1 x, W_2 x, ...], each W with its adapter s B A.

    An adapter is either folded, (W + s B A) x, or runs beside, W x + s B (A x), with the A of all maps stacked and their B
    along a diagonal, so that two small products serve all of them. Folding is faster where the maps are small; in bfloat16
    the sum would be rounded away, and learning would need the gradient of every full matrix.
    """

    def __init__(self, parts: Sequence[nn.Module], fold: bool) -> None:
        """`parts` are `nn.Linear` or peft's plain LoRA around one; see `is_plain`."""
        super().__init__()
        self._parts = [(_base(part), part if isinstance(part, LoraLinear) else None) for part in parts]
        self.adapted = any(lora is not None for _, lora in self._parts)
        self.fold = fold

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)"""
        return self._apply_to(x.flatten(0, -2), None).view(*x.shape[:-1], -1)

    def add(self, residual: Tensor, x: Tensor) -> Tensor:
        """residual (..., out) + map of x (..., in), the sum made by the matrix product itself; may overwrite the residual."""
        return self._apply_to(x.flatten(0, -2), residual.flatten(0, -2)).view(*x.shape[:-1], -1)

    def _apply_to(self, rows: Tensor, residual: Tensor | None) -> Tensor:
        raise NotImplementedError

    def _bases(self) -> list[nn.Linear]:
        return [base for base, _ in self._parts]

    def _bias(self) -> Tensor | None:
        biases: list[Tensor] = [base.bias for base in self._bases()]
        return biases[0] if len(biases) == 1 else torch.cat(biases) if all(b is not None for b in biases) else None

    def _folded(self) -> Tensor:
        """Rows W + s B A of all maps."""
        rows = []
        for base, lora in self._parts:
            if lora is None:
                rows.append(base.weight)
            else:
                a, b, scaling = _adapter(lora)
                rows.append(torch.addmm(base.weight, b.to(base.weight.dtype), a.to(base.weight.dtype), alpha=scaling))
        return torch.cat(rows) if len(rows) > 1 else rows[0]

    def _low_rank(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """A of all adapters, stacked, and s B along a diagonal; the rows of a map without an adapter are zero."""
        downs, ups = [], []
        for base, lora in self._parts:
            if lora is None:
                ups.append(base.weight.new_zeros(len(base.weight), 0, dtype=dtype))
            else:
                a, b, scaling = _adapter(lora)
                downs.append(a.to(dtype))
                ups.append((b * scaling).to(dtype))
        return torch.cat(downs), torch.block_diag(*ups) if len(ups) > 1 else ups[0]


class LearningLinear(JointLinear):
    """Computes with the present weights, differentiably; peft's `disable_adapter` counts."""

    def __init__(self, parts: Sequence[nn.Module], fold: bool) -> None:
        super().__init__(parts, fold)
        self._low: tuple[Tensor, Tensor] | None = None  # of `_low_rank`
        self._seen: object = None  # the version of the adapters that it holds

    def _apply_to(self, rows: Tensor, residual: Tensor | None) -> Tensor:
        bias = self._bias()
        if self.adapted and not self._switched_off():
            if self.fold:
                return _product(rows, self._folded(), bias, residual)
            return self._adapted_product(rows, residual, bias)
        if any(base.weight.requires_grad for base in self._bases()):
            weights = [base.weight for base in self._bases()]
            return _product(rows, torch.cat(weights) if len(weights) > 1 else weights[0], bias, residual)
        return _product(rows, fuse_rows(self._bases()), bias, residual)

    def _adapted_product(self, rows: Tensor, residual: Tensor | None, bias: Tensor | None) -> Tensor:
        places, masters, out, rank = [], [], 0, 0
        for base, lora in self._parts:
            if lora is not None:
                a, b, scaling = _adapter(lora)
                places.append(Place(slice(out, out + len(b)), slice(rank, rank + len(a)), scaling))
                masters += [a, b]
                rank += len(a)
            out += len(base.weight)
        # Cast and joined once for all passes between two steps of the optimiser; torch counts in-place changes.
        version = [(master.data_ptr(), master._version) for master in masters]
        if self._low is None or self._low[0].dtype != rows.dtype:
            with torch.no_grad():
                self._low = self._low_rank(rows.dtype)
        elif version != self._seen:
            self.join()
        self._seen = version
        down, up = self._low
        return adapted_product(rows, residual, fuse_rows(self._bases()), bias, down, up, places, masters)

    @torch.no_grad()
    def join(self) -> None:
        """Takes over the adapters' present weights, in place, where they run beside and have done so before."""
        if self._low is not None:
            for tensor, present in zip(self._low, self._low_rank(self._low[0].dtype), strict=True):
                tensor.copy_(present)

    def _switched_off(self) -> bool:
        return any(lora.disable_adapters for _, lora in self._parts if lora is not None)


class ActingLinear(JointLinear):
    """Computes with what `refresh` last saw, in tensors that stay where they are, as CUDA graphs need. No gradients."""

    @torch.no_grad()
    def __init__(self, parts: Sequence[nn.Module], fold: bool) -> None:
        super().__init__(parts, fold)
        # Without an adapter to fold in, the weights are shared, not copied.
        self.weight = self._folded().clone() if self.adapted and fold else fuse_rows(self._bases())
        self.bias = self._bias()
        self.low_rank = self._low_rank(self.weight.dtype) if self.adapted and not fold else None

    @torch.no_grad()
    def refresh(self, adapted: bool) -> None:
        """Takes over the adapters' present weights, in place; `adapted=False` acts as the base alone."""
        if self.low_rank is not None:
            down, up = self.low_rank
            present = self._low_rank(down.dtype)
            down.copy_(present[0])
            up.copy_(present[1] if adapted else torch.zeros_like(up))
        elif self.adapted:
            self.weight.copy_(self._folded() if adapted else torch.cat([base.weight for base in self._bases()]))

    def _apply_to(self, rows: Tensor, residual: Tensor | None) -> Tensor:
        if self.fold:
            return _product(rows, self.weight, self.bias, residual)
        if residual is None:
            result = F.linear(rows, self.weight, self.bias)
        else:
            result = residual.addmm_(rows, self.weight.t())  # in place: a copy of it costs as much as an adapter
            result = result if self.bias is None else result.add_(self.bias)
        if self.low_rank is not None:
            down, up = self.low_rank
            result.addmm_(F.linear(rows, down), up.t())
        return result


def _product(rows: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None) -> Tensor:
    if residual is None:
        return F.linear(rows, weight, bias)
    result = torch.addmm(residual, rows, weight.t())
    return result if bias is None else result + bias


def is_plain(module: nn.Module) -> bool:
    """Whether `JointLinear` can stand for a module: a linear map, or one adapter of peft's plain LoRA around one."""
    if isinstance(module, LoraLinear):
        return (
            isinstance(module.base_layer, nn.Linear)
            and len(module.active_adapters) == 1
            and not module.merged
            and not module.fan_in_fan_out
            and not module.lora_variant
            and not any(module.lora_bias.values())
        )
    return type(module) is nn.Linear


def fuse_rows(linears: Sequence[nn.Linear]) -> Tensor:
    """One matrix of the weights of several maps, which become views of it, so that no weight is held twice. Detached."""
    weights = [linear.weight.detach() for linear in linears]
    if len(weights) == 1:
        return weights[0]
    first = weights[0]
    ends = [weight.storage_offset() + weight.numel() for weight in weights]
    in_one_place = len({weight.untyped_storage().data_ptr() for weight in weights}) == 1
    if in_one_place and [weight.storage_offset() for weight in weights[1:]] == ends[:-1]:  # fused before
        return first.as_strided((sum(len(weight) for weight in weights), first.shape[1]), (first.shape[1], 1))
    fused = torch.cat(weights)
    for linear, rows in zip(linears, fused.split([len(weight) for weight in weights]), strict=True):
        linear.weight.data = rows
    return fused


def restructured(module: Module, make: Callable[[Sequence[nn.Module]], JointLinear], but: Sequence[str] = ()) -> Module:
    """The module's structure once more, over the same parameters, with `make([adapter])` in place of each plain adapter.

    Adapters of other kinds (of convolutions), and the children named in `but`, are the module's own.
    """
    other = copy.copy(module)
    other.__dict__["_modules"] = {
        name: child if child is None or name in but else _child(child, make) for name, child in module._modules.items()
    }
    return other


def _child(child: nn.Module, make: Callable[[Sequence[nn.Module]], JointLinear]) -> nn.Module:
    if isinstance(child, LoraLayer):
        return make([child]) if is_plain(child) else child
    return restructured(child, make)


def _base(part: nn.Module) -> nn.Linear:
    base = part.base_layer if isinstance(part, LoraLinear) else part
    assert isinstance(base, nn.Linear)
    return base


def _adapter(lora: LoraLinear) -> tuple[Tensor, Tensor, float]:
    """A (rank, in), B (out, rank) and the scaling s of the active adapter."""
    name = lora.active_adapters[0]
    a, b = lora.lora_A[name].weight, lora.lora_B[name].weight
    assert isinstance(a, Tensor) and isinstance(b, Tensor)
    return a, b, float(lora.scaling[name])
