"""Triton kernels for what lies between the matrix products of a decoder layer, each one pass over memory.

Imported on a GPU alone; `fused` chooses between these and torch's own operations, says what each computes, and is what the
rest calls. All arithmetic is float32, rounded once where a result is stored.
"""

# triton's launch syntax (`kernel[grid](...)`) and its jitted functions carry no types.
# mypy: disable-error-code="no-untyped-def, no-untyped-call"

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

_HEADS_AT_ONCE = 8
_COLUMNS_AT_ONCE = 1024


@triton.jit
def _turn(source, source_head, target, target_head, first, cos, sin, HALF: tl.constexpr, BLOCK: tl.constexpr):
    """Rotates the pairs (i, i + HALF) of BLOCK heads."""
    head = (first + tl.arange(0, BLOCK))[:, None]
    lane = tl.arange(0, HALF)[None, :]
    low = tl.load(source + head * source_head + lane).to(tl.float32)
    high = tl.load(source + head * source_head + HALF + lane).to(tl.float32)
    tl.store(target + head * target_head + lane, low * cos - high * sin)
    tl.store(target + head * target_head + HALF + lane, high * cos + low * sin)


@triton.jit
def _rotate_kernel(
    q, k, v, q_to, k_to, v_to, cos, sin,
    q_n, q_t, q_h, k_n, k_t, k_h, v_n, v_t, v_h,
    q_to_n, q_to_t, q_to_h, k_to_n, k_to_t, k_to_h, v_to_n, v_to_t, v_to_h,
    steps, heads, kv_heads, sign,
    HALF: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One position of one observation, BLOCK heads, which are all of q, all of k or all of v."""
    row = tl.program_id(0).to(tl.int64)
    n = row // steps
    t = row % steps
    first = tl.program_id(1) * BLOCK
    lane = tl.arange(0, HALF)[None, :]
    c = tl.load(cos + t * 2 * HALF + lane).to(tl.float32)
    s = tl.load(sin + t * 2 * HALF + lane).to(tl.float32) * sign
    if first < heads:
        _turn(q + n * q_n + t * q_t, q_h, q_to + n * q_to_n + t * q_to_t, q_to_h, first, c, s, HALF, BLOCK)
    elif first < heads + kv_heads:
        of_k = first - heads
        _turn(k + n * k_n + t * k_t, k_h, k_to + n * k_to_n + t * k_to_t, k_to_h, of_k, c, s, HALF, BLOCK)
    else:
        head = (first - heads - kv_heads + tl.arange(0, BLOCK))[:, None]
        wide = tl.arange(0, 2 * HALF)[None, :]
        values = tl.load(v + n * v_n + t * v_t + head * v_h + wide)
        tl.store(v_to + n * v_to_n + t * v_to_t + head * v_to_h + wide, values)


@triton.jit
def _swiglu_kernel(gate_up, out, width, stride, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    gate = tl.load(gate_up + row * stride + column, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * stride + width + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * width + column, gate * tl.sigmoid(gate) * up, mask=inside)


@triton.jit
def _swiglu_gradient_kernel(gate_up, gradient, out, width, stride, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    gate = tl.load(gate_up + row * stride + column, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * stride + width + column, mask=inside, other=0.0).to(tl.float32)
    of_out = tl.load(gradient + row * width + column, mask=inside, other=0.0).to(tl.float32)
    share = tl.sigmoid(gate)
    tl.store(out + row * 2 * width + column, of_out * up * share * (1 + gate * (1 - share)), mask=inside)
    tl.store(out + row * 2 * width + width + column, of_out * gate * share, mask=inside)


@triton.jit
def _rms_norm_kernel(x, weight, out, width, stride, eps, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < width
    values = tl.load(x + row * stride + column, mask=inside, other=0.0).to(tl.float32)
    scale = tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    root = tl.rsqrt(tl.sum(values * values, axis=0) / width + eps)
    tl.store(out + row * width + column, values * root * scale, mask=inside)


def rotate(sources: Sequence[Tensor], targets: Sequence[Tensor], cos: Tensor, sin: Tensor, sign: float) -> None:
    """Writes q and k rotated, and v as it is, from `sources` to `targets`.

    Args:
        sources, targets: q, k and v, each (N, T, heads, head_dim) with head_dim a power of two and its values side by side.
        cos, sin: (T, 1, head_dim) of the angles, contiguous.
        sign: 1, or -1 to turn back, which is also what a gradient takes.
    """
    q, k, _ = sources
    n, steps, heads, width = q.shape
    kv_heads = k.shape[2]
    block = _HEADS_AT_ONCE
    while heads % block or kv_heads % block:
        block //= 2
    _launch(
        _rotate_kernel,
        (n * steps, (heads + 2 * kv_heads) // block),
        *sources,
        *targets,
        cos,
        sin,
        *(tensor.stride(axis) for tensor in (*sources, *targets) for axis in range(3)),
        steps,
        heads,
        kv_heads,
        sign,
        HALF=width // 2,
        BLOCK=block,
    )


def swiglu(gate_up: Tensor) -> Tensor:
    """(rows, 2 W) -> (rows, W): silu of the first half times the second."""
    rows, width = gate_up.shape[0], gate_up.shape[1] // 2
    out = gate_up.new_empty(rows, width)
    grid = (rows, triton.cdiv(width, _COLUMNS_AT_ONCE))
    _launch(_swiglu_kernel, grid, gate_up, out, width, gate_up.stride(0), BLOCK=_COLUMNS_AT_ONCE)
    return out


def swiglu_gradient(gate_up: Tensor, gradient: Tensor) -> Tensor:
    """The gradient (rows, 2 W) of `swiglu`'s input from that of its output (rows, W), which is contiguous."""
    rows, width = gradient.shape
    out = gradient.new_empty(rows, 2 * width)
    grid = (rows, triton.cdiv(width, _COLUMNS_AT_ONCE))
    _launch(_swiglu_gradient_kernel, grid, gate_up, gradient, out, width, gate_up.stride(0), BLOCK=_COLUMNS_AT_ONCE)
    return out


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """(rows, W) over its root mean square, times weight (W) -> (rows, W)."""
    rows, width = x.shape
    out = x.new_empty(rows, width)
    _launch(_rms_norm_kernel, (rows,), x, weight, out, width, x.stride(0), eps, BLOCK=triton.next_power_of_2(width))
    return out


def _launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, **constants: Any) -> None:
    if not grid[0]:
        return
    device = arguments[0].device
    if device.type != "cuda":  # triton's interpreter
        kernel[grid](*arguments, **constants)
        return
    with torch.cuda.device(device):
        kernel[grid](*arguments, **constants)
