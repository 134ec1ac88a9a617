"""Seconds of a computation that may run on a device of its own."""

import time
from collections.abc import Callable

import torch

from stages.timing import Seconds


class Stopwatch:
    """Times on one device, until its work is done."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def now(self) -> Seconds:
        """The present moment, by the clock and by what this process has had of processors."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter(), time.process_time()

    def time(self, run: Callable[[], object]) -> Seconds:
        began = self.now()
        run()
        return since(began, self.now())


def since(began: Seconds, ended: Seconds) -> Seconds:
    """The seconds from one moment to another."""
    return ended[0] - began[0], ended[1] - began[1]
