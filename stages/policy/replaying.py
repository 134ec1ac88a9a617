"""Learning's forward and backward pass as CUDA graphs.

A pass of the 7B model over a few decisions is thousands of kernels, and launching them one by one takes a processor longer than
computing them takes a GPU. A graph is launched at once.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from stages.policy.scoring import ScoringModel

MOST = 8  # decisions a pass; more keep a GPU busy without a graph, whose activations stay allocated


class Replays:
    """`ScoringModel` for a frozen model with trainable adapters, for passes of at most `MOST` decisions.

    Each shape is captured when it comes first, and replayed from then on. All graphs share one pool of memory, because one
    pass is done before the next begins; if two forward passes come before their backward ones, the first is run again.
    """

    def __init__(self, scoring: ScoringModel, trained: Sequence[nn.Parameter]) -> None:
        """`trained` are the parameters that take gradients; they stay where they are and change in place."""
        self.scoring, self.trained = scoring, list(trained)
        self.pool: Any = torch.cuda.graph_pool_handle()
        self.holder: object = None  # of the activations in the pool: the forward pass that ran last
        self._passes: dict[tuple[tuple[int, ...], ...], _Pass] = {}
        self._join: torch.cuda.CUDAGraph | None = None
        self._joined: list[int] = []

    def __call__(self, pixel_values: Tensor, input_ids: Tensor, proprio: Tensor | None, keep: int) -> Tensor:
        """See `ScoringModel`; differentiable with respect to `trained`.

        Raises:
            torch.OutOfMemoryError: the memory does not hold the graph.
        """
        inputs = [pixel_values, input_ids, *([] if proprio is None else [proprio])]
        key = *(tuple(tensor.shape) for tensor in inputs), (keep,)
        if key not in self._passes:
            try:
                self._passes[key] = _Pass(self, inputs, keep)
            except RuntimeError as error:
                # Ending a capture that failed may raise another error than the one that ended it.
                if isinstance(error.__context__, torch.OutOfMemoryError):
                    raise error.__context__ from None
                raise
        self._join_adapters()
        result: Tensor = _Replay.apply(self._passes[key], inputs, *self.trained)
        return result

    def _join_adapters(self) -> None:
        """Once after each step of the optimiser; torch counts in-place changes."""
        versions = [parameter._version for parameter in self.trained]
        if versions == self._joined:
            return
        if self._join is None:
            self._join = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._join, pool=self.pool):
                self.scoring.join_adapters()
        self._join.replay()
        self._joined = versions


class _Pass:
    """The graphs of one shape, and where they read and write."""

    def __init__(self, replays: Replays, inputs: Sequence[Tensor], keep: int) -> None:
        self.replays = replays
        self.inputs = [tensor.clone() for tensor in inputs]
        self.keep = keep
        beside = torch.cuda.Stream()
        beside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(beside):  # the libraries choose their kernels, and adapters find their places
            for _ in range(2):
                hidden = self._score()
                self._gradients(hidden, torch.zeros_like(hidden))
        del hidden
        torch.cuda.current_stream().wait_stream(beside)
        self.forward_graph, self.backward_graph = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.forward_graph, pool=replays.pool):
            hidden = self._score()
        self.hidden = hidden.detach()
        self.upstream = torch.zeros_like(self.hidden)
        with torch.cuda.graph(self.backward_graph, pool=replays.pool):
            gradients = self._gradients(hidden, self.upstream)
            self.flat = torch.cat([gradient.flatten() for gradient in gradients if gradient is not None])
        self.shapes = [None if gradient is None else gradient.shape for gradient in gradients]

    def forward(self, inputs: Sequence[Tensor], holder: object) -> None:
        for static, tensor in zip(self.inputs, inputs, strict=True):
            static.copy_(tensor)
        self.forward_graph.replay()
        self.replays.holder = holder

    def backward(self, upstream: Tensor) -> list[Tensor | None]:
        """The gradients of all trained parameters; None for one that the pass does not read."""
        self.upstream.copy_(upstream)
        self.backward_graph.replay()
        shapes = [shape for shape in self.shapes if shape is not None]
        # Out of the graph's memory at once: autograd may keep what it is given as a parameter's gradient.
        parts = iter(self.flat.clone().split([shape.numel() for shape in shapes]))
        return [None if shape is None else next(parts).view(shape) for shape in self.shapes]

    def _score(self) -> Tensor:
        pixel_values, input_ids, *proprio = self.inputs
        with torch.enable_grad():
            return self.replays.scoring(pixel_values, input_ids, proprio[0] if proprio else None, self.keep)

    def _gradients(self, hidden: Tensor, upstream: Tensor) -> tuple[Tensor | None, ...]:
        return torch.autograd.grad(hidden, self.replays.trained, upstream, allow_unused=True)


class _Replay(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, of_shape: _Pass, inputs: Sequence[Tensor], *trained: Tensor) -> Tensor:
        ctx.of_shape, ctx.inputs, ctx.holder = of_shape, inputs, object()
        of_shape.forward(inputs, ctx.holder)
        return of_shape.hidden.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        of_shape: _Pass = ctx.of_shape
        if of_shape.replays.holder is not ctx.holder:
            of_shape.forward(ctx.inputs, ctx.holder)
        return None, None, *of_shape.backward(gradients[0])
