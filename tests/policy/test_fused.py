"""On a GPU the fused kernels compute what torch's own operations do, forwards and backwards; elsewhere those run."""

from collections.abc import Callable
from types import ModuleType

import pytest
import torch
from torch import Tensor

from stages.policy import fused

on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def both(monkeypatch: pytest.MonkeyPatch, compute: Callable[[], tuple[Tensor, ...]]) -> list[tuple[Tensor, ...]]:
    """What `compute` gives with torch's operations, and with the kernels."""
    kernels = fused.available()
    assert isinstance(kernels, ModuleType)
    results = []
    for chosen in (None, kernels):
        monkeypatch.setattr(fused, "_kernels", lambda *_, chosen=chosen: chosen)
        results.append(compute())
    return results


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, device="cuda", requires_grad=True)


@on_gpu
@pytest.mark.parametrize(("heads", "kv_heads", "width"), [(32, 32, 128), (8, 2, 16), (3, 1, 8)])
def test_rotation(monkeypatch: pytest.MonkeyPatch, heads: int, kv_heads: int, width: int) -> None:
    qkv, angles = draw(2, 5, heads + 2 * kv_heads, width), draw(5, 1, width // 2).detach().repeat(1, 1, 2)
    upstream = [torch.randn(2, n, 5, width, device="cuda") for n in (heads, kv_heads, kv_heads)]

    def compute() -> tuple[Tensor, ...]:
        turned = fused.rotate(qkv, angles.cos(), angles.sin(), heads, kv_heads)
        return *turned, *torch.autograd.grad(turned, qkv, upstream)

    torch.testing.assert_close(*both(monkeypatch, compute))

    @torch.no_grad()
    def into() -> tuple[Tensor, ...]:
        cache = torch.zeros(2, 3, kv_heads, 9, width, device="cuda")[:, :2]
        part = cache[:, :, :, 2:7]
        q, k, v = fused.rotate_into(qkv, angles.cos(), angles.sin(), heads, kv_heads, part[0], part[1])
        return q, k, v, cache

    torch.testing.assert_close(*both(monkeypatch, into))


@on_gpu
@pytest.mark.parametrize("width", [11008, 96, 7])
def test_swiglu(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    gate_up, upstream = draw(2, 3, 2 * width), torch.randn(2, 3, width, device="cuda")

    def compute() -> tuple[Tensor, ...]:
        gated = fused.swiglu(gate_up)
        return gated, *torch.autograd.grad(gated, gate_up, upstream)

    torch.testing.assert_close(*both(monkeypatch, compute))


@on_gpu
def test_rms_norm(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight = draw(3, 4, 96).detach()[:, -1:], draw(96).detach()
    with torch.no_grad():
        torch.testing.assert_close(*both(monkeypatch, lambda: (fused.rms_norm(x, weight, 1e-6),)))


@on_gpu
def test_they_are_what_runs_on_a_gpu() -> None:
    assert fused._kernels(draw(1, 4)) is not None
    assert fused._kernels(draw(1, 4), draw(1, 12)) is None  # only powers of two are turned


def test_elsewhere_torch_computes() -> None:
    assert fused._kernels(torch.zeros(1, 4)) is None


def test_a_machine_that_cannot_compile_is_told_once_and_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails() -> ModuleType:
        raise RuntimeError("Failed to find C compiler.\nand much more")

    monkeypatch.setattr(fused, "_loaded", fails)
    fused.available.cache_clear()
    try:
        with pytest.warns(UserWarning, match=r"cannot compile here \(Failed to find C compiler\.\).*apt install gcc"):
            assert fused.available() is None
        assert fused.available() is None
    finally:
        fused.available.cache_clear()
