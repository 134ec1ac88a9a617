"""How much memory a computation takes at its peak, and how large a batch fits. Measured, not guessed."""

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def peak_bytes(run: Callable[[], object], device: torch.device) -> int:
    """The most bytes of tensors that `run` holds at one time, beyond those that are there when it starts.

    On a CPU the same operations give the same number; what a kernel allocates and frees within itself is not seen.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        return torch.cuda.max_memory_allocated(device) - before
    with _LiveBytes() as live:
        run()
    return live.peak


@dataclass(frozen=True)
class BatchCost:
    """What a computation over a batch takes at its peak, as measured for one and for two; see `batch_cost`."""

    one: int  # bytes
    each: int  # bytes for every further one

    def largest(self, limit: int) -> int:
        """The largest batch that stays within `limit` bytes; 0 when not even one does."""
        return 0 if self.one > limit else 1 + (limit - self.one) // max(self.each, 1)


def batch_cost(run: Callable[[int], object], device: torch.device) -> BatchCost:
    """Measures `run(1)` and `run(2)`, and takes every further one to cost what the second does."""
    if device.type == "cuda":
        run(1)  # makes what stays, such as the workspaces of the matrix products
    one = peak_bytes(lambda: run(1), device)
    return BatchCost(one, peak_bytes(lambda: run(2), device) - one)


def free_bytes(device: torch.device) -> int:
    """What tensors can still have of a CUDA device, counting what torch holds of it without use."""
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


class _LiveBytes(TorchDispatchMode):
    """Adds up the storages that operations make, from when they appear until they are freed."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: dict[int, weakref.ref] = {}  # by address, while they live

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        for tensor in _tensors((args, kwargs)):
            self._notice(tensor, made=False)  # an input not seen before was there when the mode began
        result = func(*args, **kwargs)
        for tensor in _tensors(result):
            self._notice(tensor, made=True)
        self.peak = max(self.peak, self.now)
        return result

    def _notice(self, tensor: Tensor, made: bool) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes() if made else 0
        if key not in self._known:
            self.now += size
            self._known[key] = weakref.ref(storage, lambda _: self._forget(key, size))

    def _forget(self, key: int, size: int) -> None:
        del self._known[key]
        self.now -= size


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
