"""What lies between the matrix products of a decoder layer: rotation of queries and keys, SwiGLU, RMS norm.

On a GPU each is one pass over memory (`kernels`), where torch's own operations take up to five. Elsewhere, and where Triton
cannot compile, torch's operations run.
"""

import functools
import warnings
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

Heads = tuple[Tensor, Tensor, Tensor]  # q, k, v: (N, heads, T, head_dim)


def rotate(qkv: Tensor, cos: Tensor, sin: Tensor, heads: int, kv_heads: int) -> Heads:
    """Splits (N, T, heads + 2 kv_heads, head_dim) and turns q and k by the angles of their positions; differentiable.

    Args:
        cos, sin: (T, 1, head_dim) of `Decoder.rotations`.
    """
    kernels = _kernels(qkv, cos)
    if kernels is None:
        return _rotate_by_torch(qkv, cos, sin, heads, kv_heads)
    q, k, v = _Rotation.apply(qkv, cos, sin, heads, kv_heads)
    return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)


def rotate_into(
    qkv: Tensor, cos: Tensor, sin: Tensor, heads: int, kv_heads: int, keys: Tensor, values: Tensor
) -> Heads:
    """`rotate` that also writes k and v to `keys` and `values`, (N, kv_heads, T, head_dim); without gradients."""
    kernels = _kernels(qkv, cos)
    if kernels is None:
        q, k, v = _rotate_by_torch(qkv, cos, sin, heads, kv_heads)
        keys[:], values[:] = k, v
        return q, k, v
    sources = qkv.split([heads, kv_heads, kv_heads], dim=2)
    q = torch.empty_like(sources[0], memory_format=torch.contiguous_format)
    kernels.rotate(sources, (q, keys.transpose(1, 2), values.transpose(1, 2)), cos, sin, 1.0)
    return q.transpose(1, 2), keys, values


def swiglu(gate_up: Tensor) -> Tensor:
    """(..., 2 W) -> (..., W): silu of the first half times the second half; differentiable."""
    if _kernels(gate_up) is None:
        gate, up = gate_up.chunk(2, dim=-1)
        return F.silu(gate) * up
    return _SwiGLU.apply(gate_up.flatten(0, -2)).view(*gate_up.shape[:-1], -1)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """(..., W) over its root mean square, times `weight`; differentiable."""
    kernels = None if torch.is_grad_enabled() else _kernels(x)
    if kernels is None:
        return F.rms_norm(x, x.shape[-1:], weight, eps)
    return kernels.rms_norm(x.flatten(0, -2), weight, eps).view(x.shape)


def _rotate_by_torch(qkv: Tensor, cos: Tensor, sin: Tensor, heads: int, kv_heads: int) -> Heads:
    qk, v = qkv.split([heads + kv_heads, kv_heads], dim=2)
    first, second = qk.chunk(2, dim=-1)
    qk = qk * cos + torch.cat([-second, first], dim=-1) * sin
    q, k = qk.split([heads, kv_heads], dim=2)
    return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)


class _Rotation(torch.autograd.Function):
    """See `rotate`; heads come third in what it gives."""

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, cos: Tensor, sin: Tensor, heads: int, kv_heads: int) -> Heads:
        sources = qkv.split([heads, kv_heads, kv_heads], dim=2)
        q, k, v = (torch.empty_like(part, memory_format=torch.contiguous_format) for part in sources)
        _loaded().rotate(sources, (q, k, v), cos, sin, 1.0)
        ctx.save_for_backward(cos, sin)
        return q, k, v

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        cos, sin = ctx.saved_tensors
        sources = [g if g.stride(-1) == 1 else g.contiguous() for g in gradients]
        sizes = [part.shape[2] for part in sources]
        n, steps, _, width = sources[0].shape
        of_qkv = sources[0].new_empty(n, steps, sum(sizes), width)
        _loaded().rotate(sources, of_qkv.split(sizes, dim=2), cos, sin, -1.0)
        return of_qkv, None, None, None, None


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_up: Tensor) -> Tensor:
        ctx.save_for_backward(gate_up)
        return _loaded().swiglu(gate_up)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (gate_up,) = ctx.saved_tensors
        return _loaded().swiglu_gradient(gate_up, gradients[0].contiguous())


def _kernels(x: Tensor, turned: Tensor | None = None) -> ModuleType | None:
    """The kernels, where they can run on `x`; `turned` (..., head_dim) is rotated as well, which needs a power of two."""
    if not x.is_cuda or (turned is not None and turned.shape[-1] & (turned.shape[-1] - 1)):
        return None
    return available()


@functools.cache
def available() -> ModuleType | None:
    """The kernels after a trial on the GPU, or None and one warning, where Triton or what it needs is missing.

    Without the trial a machine that has no C compiler would fail in the middle of a run.
    """
    try:
        kernels = _loaded()
        kernels.swiglu(torch.zeros(1, 2, device="cuda"))
        return kernels
    except Exception as error:  # of the compiler, the driver, the import: nothing of that is needed
        warnings.warn(
            f"Triton cannot compile here ({str(error).splitlines()[0] if str(error) else type(error).__name__}), so decisions "
            "and updates run slower; a C compiler may be missing (apt install gcc)",
            stacklevel=2,
        )
        return None


def _loaded() -> ModuleType:
    from stages.policy import kernels

    return kernels
