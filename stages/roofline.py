"""What a device allows: the least time that a computation takes, by the weights it reads and the FLOPs it makes.

The two rates are measured where a bench runs, in the dtype that it computes in, or taken from a data sheet.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from stages.arithmetic import Arithmetic
from stages.params import LoraParams
from stages.stopwatch import Stopwatch
from stages.timing import Contender, Cost, Seconds, by_turns
from stages.types import ACTION_DIM

_LARGEST_READ = 2**30  # bytes: far more than any cache holds
_SIDE = {"cpu": 768, "cuda": 8192}  # of the square matrices that are multiplied
_REPEATS = 5


@dataclass(frozen=True)
class Rates:
    """Of one device, in one dtype."""

    bandwidth: float  # bytes/s read
    matmul: float  # FLOP/s of matrix products


# Data sheets: dense bfloat16 matrix products, memory bandwidth.
PUBLISHED = {
    "A100 40 GB": Rates(1.555e12, 312e12),
    "A100 80 GB": Rates(2.039e12, 312e12),
    "H100": Rates(3.35e12, 989e12),
    "H200": Rates(4.8e12, 989e12),
}


@dataclass(frozen=True)
class Roofline:
    """The least seconds that the policy's computations take; n is a number of observations."""

    count: Arithmetic
    itemsize: int  # bytes of a weight
    rates: Rates

    def prefill(self, n: int) -> float:
        """Vision, the prompt and the first action token."""
        flops = n * (self.count.vision_flops + self.count.prompt_flops())
        return self._least(flops, self.count.vision_bytes(self.itemsize) + self.count.decode_bytes(self.itemsize))

    def decode(self, n: int) -> float:
        """One further action token. The key-value cache that it reads besides the weights is not counted."""
        return self._least(n * self.count.decode_flops(), self.count.decode_bytes(self.itemsize))

    def act(self, n: int) -> float:
        return self.prefill(n) + (ACTION_DIM - 1) * self.decode(n)

    def score(self, n: int) -> float:
        """`log_prob` without gradients."""
        return n * self.count.forward_flops() / self.rates.matmul

    def learn(self, n: int, lora: LoraParams, checkpointing: bool) -> float:
        """`log_prob` and its backward pass."""
        return n * self.count.learning_flops(lora, checkpointing) / self.rates.matmul

    def _least(self, flops: int, read: int) -> float:
        return max(flops / self.rates.matmul, read / self.rates.bandwidth)


class Probes:
    """Computations that only read, or only multiply, by which the rates are measured."""

    def __init__(self, device: torch.device, dtype: torch.dtype, read: int) -> None:
        """`read` is how many bytes the policy reads at once: what fits a cache may be read from one. At most 1 GiB."""
        width = 1024
        rows = max(1, min(read, _LARGEST_READ) // (width * dtype.itemsize))
        self._watch = Stopwatch(device)
        draws = torch.Generator(device).manual_seed(0)

        def draw(*shape: int) -> Tensor:
            # Numbers as weights are: a GPU multiplies equal ones faster, because they take less power.
            return torch.randn(shape, device=device, dtype=dtype, generator=draws)

        matrix, vector = draw(rows, width), draw(width)
        target = torch.empty_like(matrix)
        product = torch.empty(rows, device=device, dtype=dtype)
        self._read = matrix.nbytes
        side = _SIDE[device.type]
        left, right = draw(side, side), draw(side, side)
        result = torch.empty_like(left)
        self._flops = 2 * side**3
        self._runs: dict[str, Callable[[], object]] = {
            "copy": lambda: target.copy_(matrix),
            "matrix times vector": lambda: torch.mv(matrix, vector, out=product),
            "matrix product": lambda: torch.mm(left, right, out=result),
        }

    def contenders(self, repeats: int = _REPEATS) -> dict[str, Contender]:
        """For `stages.timing.by_turns`; each gives the seconds of one of `repeats` runs."""
        return {name: self._repeated(name, run, repeats) for name, run in self._runs.items()}

    def rates(self, costs: Mapping[str, Cost]) -> Rates:
        """From what the contenders took; of the two ways to move bytes the faster one."""
        return Rates(
            bandwidth=max(
                2 * self._read / costs["copy"].median * 1000, self._read / costs["matrix times vector"].median * 1000
            ),
            matmul=self._flops / costs["matrix product"].median * 1000,
        )

    def _repeated(self, name: str, run: Callable[[], object], repeats: int) -> Contender:
        def measure() -> Mapping[str, Seconds]:
            clock, cpu = self._watch.time(lambda: [run() for _ in range(repeats)])
            return {name: (clock / repeats, cpu / repeats)}

        return measure


def measure_rates(device: torch.device, dtype: torch.dtype, read: int) -> Rates:
    """The rates of a device now, in about a second."""
    probes = Probes(device, dtype, read)
    return probes.rates(by_turns(probes.contenders(), rounds=5))
