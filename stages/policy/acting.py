"""One decision for N observations: vision, one prefill, six cached steps of one token, on static shapes.

Everything that a decision touches is allocated once for a shape (N, prompt length), so on CUDA each of its seven parts
is captured as a graph and replayed: 32 layers of small kernels are launched by the device, not by Python. On a CPU the
same code runs as it stands.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.nn import functional as F

from stages.policy.decoder import Decoder
from stages.policy.images import ImageTransform
from stages.policy.linears import ActingLinear, restructured
from stages.policy.modeling import OpenVLAForActionPrediction
from stages.types import ACTION_DIM


@dataclass(frozen=True)
class Decided:
    """What was decided for N observations; on the model's device."""

    tokens: Tensor  # (N, A) int64 vocabulary ids
    log_prob: Tensor  # (N, A) float32, nats
    entropy: Tensor  # (N, A) float32, nats


@dataclass
class Situation:
    """The inputs, state and outputs of decisions of one shape; a graph reads and writes them where they are."""

    pixels: Tensor  # (N, size, size, 3) uint8
    proprio: Tensor | None  # (N, proprio_dim)
    prompt: Tensor  # (1, P) int64
    uniform: Tensor | None  # (N, A) float64 in [0, 1); None is greedy
    temperature: Tensor  # () float32
    cache: Tensor  # see `Decoder.new_cache`
    rotations: tuple[Tensor, Tensor]
    decided: Decided

    @property
    def prefix(self) -> int:
        """Positions before the first action token."""
        return self.rotations[0].shape[0] - ACTION_DIM + 1


class ActingEngine:
    """Decides with the weights of a live model, which it shares; see `linears` for what it does with adapters."""

    def __init__(
        self, model: OpenVLAForActionPrediction, transform: ImageTransform, candidates: range, fold: bool
    ) -> None:
        """`candidates` are the vocabulary ids among which tokens are chosen; `fold` see `JointLinear`.

        Raises:
            MismatchError: an adapter on the language model that is no plain LoRA.
        """
        self._model, self._transform, self._candidates = model, transform, candidates
        self._linears: list[ActingLinear] = []

        def make(parts: Sequence[nn.Module]) -> ActingLinear:
            self._linears.append(ActingLinear(parts, fold))
            return self._linears[-1]

        self._eyes = restructured(model, make, but=["language_model"])
        self._decoder = Decoder(model.language_model, make)
        seeing = [child for name, child in self._eyes.named_children() if name != "language_model"]
        for child in seeing:
            child.eval()
        # What was left to peft (adapters of convolutions) is switched by Python, which a captured graph does not see.
        self._live = any(isinstance(module, LoraLayer) for child in seeing for module in child.modules())
        self._adapter = [parameter for name, parameter in model.named_parameters() if "lora_" in name]
        self._version: object = None
        self._head_adapted = isinstance(model.language_model.lm_head, LoraLayer)
        # In float32, as in learning: near 10, logits in bfloat16 are 1/16 apart.
        head = head_rows(model.language_model.lm_head, candidates).detach().float()
        self._head = head.clone() if self._head_adapted else head
        self._pool: Any = None  # of the graphs' memory; they never run at the same time
        self._situations: dict[tuple[int, int, bool], tuple[Situation, list[Callable[[], None]]]] = {}
        self._cache: Tensor | None = None

    def refresh(self, adapted: bool) -> None:
        """Takes over the adapter's present weights, or none of it; costs next to nothing when neither has changed."""
        version = adapted, [parameter._version for parameter in self._adapter]  # torch counts in-place changes
        if version == self._version:
            return
        if self._live:
            self._forget_situations()
        for linear in self._linears:
            linear.refresh(adapted)
        if self._head_adapted:
            self._head.copy_(head_rows(self._model.language_model.lm_head, self._candidates, adapted).detach())
        self._version = version

    @torch.inference_mode()
    def decide(
        self,
        pixels: Tensor,
        proprio: Tensor | None,
        prompt: Tensor,
        uniform: Tensor | None,
        temperature: float,
    ) -> Decided:
        """Chooses seven tokens for each of N observations; `refresh` comes first.

        Args:
            pixels: (N, size, size, 3) uint8 of `PreparedImages`, on any device.
            proprio: (N, proprio_dim) normalised, or None for a model without that token.
            prompt: (1, P) ids.
            uniform: (N, A) float64 draws in [0, 1), by which the tokens are sampled; None takes the likeliest.
            temperature: of the distribution that is sampled and reported; positive.
        """
        situation, graphs = self._situation(pixels, proprio, prompt, uniform, temperature)
        for part in graphs or self._parts(situation):
            part()
        decided = situation.decided
        return Decided(decided.tokens.clone(), decided.log_prob.clone(), decided.entropy.clone())

    @torch.inference_mode()
    def prefill(self, situation: Situation) -> None:
        """Vision, the prompt, and the first token."""
        pixel_values = self._transform.normalize(situation.pixels).to(self._model.dtype)
        embeds = self._eyes.embed(pixel_values, situation.prompt, situation.proprio)
        self._advance(situation, embeds, position=0)

    @torch.inference_mode()
    def step(self, situation: Situation, position: int) -> None:
        """Action token `position` (1..6) from the one before it."""
        before = situation.decided.tokens[:, position - 1]
        self._advance(situation, self._model.get_input_embeddings()(before)[:, None], position)

    def _advance(self, situation: Situation, embeds: Tensor, position: int) -> None:
        start = situation.prefix + position - 1 if position else 0
        hidden = self._decoder.advance(embeds, situation.cache, situation.rotations, start)
        logits = F.linear(hidden.float(), self._head)
        every = F.log_softmax(logits / situation.temperature, dim=-1)
        index = logits.argmax(-1) if situation.uniform is None else inverse_cdf(every, situation.uniform[:, position])
        decided = situation.decided
        decided.tokens[:, position] = index + self._candidates.start
        decided.log_prob[:, position] = every.gather(-1, index[:, None])[:, 0]
        decided.entropy[:, position] = entropy_of(every)

    @torch.inference_mode()
    def situate(
        self,
        pixels: Tensor,
        proprio: Tensor | None,
        prompt: Tensor,
        uniform: Tensor | None,
        temperature: float,
    ) -> Situation:
        """A new situation with these inputs (see `decide`), for `prefill` and `step`."""
        n, device = len(pixels), self._head.device
        middle = self._vision_tokens(pixels.shape[1]) + (self._model.proprio_projector is not None)
        length = prompt.shape[1] + middle + ACTION_DIM - 1
        return Situation(
            pixels=pixels.to(device, copy=True),
            proprio=None if proprio is None else proprio.to(device, self._model.dtype, copy=True),
            prompt=prompt.to(device, copy=True),
            uniform=None if uniform is None else uniform.to(device, copy=True),
            temperature=torch.tensor(temperature, dtype=torch.float32, device=device),
            cache=self._part_of_cache(n, length),
            rotations=self._decoder.rotations(length),
            decided=Decided(
                torch.zeros(n, ACTION_DIM, dtype=torch.int64, device=device),
                torch.zeros(n, ACTION_DIM, device=device),
                torch.zeros(n, ACTION_DIM, device=device),
            ),
        )

    def _parts(self, situation: Situation) -> list[Callable[[], None]]:
        """A decision in order: the prefill, and six steps."""
        steps = [partial(self.step, situation, position) for position in range(1, ACTION_DIM)]
        return [partial(self.prefill, situation), *steps]

    def _situation(
        self, pixels: Tensor, proprio: Tensor | None, prompt: Tensor, uniform: Tensor | None, temperature: float
    ) -> tuple[Situation, list[Callable[[], None]]]:
        """The situation of a shape with these inputs, and on CUDA the graphs that decide in it."""
        key = len(pixels), prompt.shape[1], uniform is None
        if key not in self._situations:
            situation = self.situate(pixels, proprio, prompt, uniform, temperature)
            graphs: list[Callable[[], None]] = []
            if self._head.is_cuda:
                self._pool = self._pool or torch.cuda.graph_pool_handle()
                graphs = capture(self._parts(situation), self._pool)
            self._situations[key] = situation, graphs
        situation, graphs = self._situations[key]
        situation.pixels.copy_(pixels, non_blocking=True)
        situation.prompt.copy_(prompt, non_blocking=True)
        situation.temperature.fill_(temperature)
        if situation.proprio is not None and proprio is not None:
            situation.proprio.copy_(proprio, non_blocking=True)
        if situation.uniform is not None and uniform is not None:
            situation.uniform.copy_(uniform, non_blocking=True)
        return situation, graphs

    def _part_of_cache(self, batch: int, length: int) -> Tensor:
        """The first `batch` rows and `length` positions of one cache, so that a smaller shape takes no memory of its own."""
        if self._cache is None or self._cache.shape[2] < batch or self._cache.shape[4] < length:
            held = (0, 0) if self._cache is None else (self._cache.shape[2], self._cache.shape[4])
            self._forget_situations()  # they hold the smaller one
            self._cache = None
            self._cache = self._decoder.new_cache(max(batch, held[0]), max(length, held[1]))
        return self._cache[:, :, :batch, :, :length]

    def _forget_situations(self) -> None:
        """And the graphs' memory pool with them: torch takes no capture into a pool whose graphs are all gone."""
        self._situations.clear()
        self._pool = None

    def _vision_tokens(self, size: int) -> int:
        towers = self._model.config.towers
        return (size // towers[0].patch_size) ** 2


def capture(parts: Sequence[Callable[[], None]], pool: Any) -> list[Callable[[], None]]:
    """Each part as a CUDA graph in one memory pool, after two runs that let the libraries choose their kernels.

    What is returned keeps its part, and with it the tensors that the graph reads and writes.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            for part in parts:
                part()
    torch.cuda.current_stream().wait_stream(stream)
    replays: list[Callable[[], None]] = []
    for part in parts:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool):
            part()
        replays.append(partial(_replay, graph, part))
    return replays


def _replay(graph: torch.cuda.CUDAGraph, part: Callable[[], None]) -> None:
    graph.replay()


def head_rows(head: nn.Module, ids: range, adapted: bool = True) -> Tensor:
    """The rows (len(ids), hidden_size) of the output layer that give the logits of consecutive vocabulary ids.

    Its adapter is included where it has one, as OpenVLA's own fine-tuning gives it.
    """
    rows = slice(ids.start, ids.stop)
    lora: Any = head if isinstance(head, LoraLayer) else None
    base: Any = lora.get_base_layer().weight if lora else head.weight
    if lora is None or not adapted or lora.disable_adapters:
        return base[rows]
    name = lora.active_adapters[0]
    delta = lora.scaling[name] * lora.lora_B[name].weight[rows] @ lora.lora_A[name].weight
    return base[rows] + delta.to(base.dtype)


def entropy_of(log_probs: Tensor) -> Tensor:
    """(..., V) log-probs -> (...) entropy in nats."""
    return -(log_probs.exp() * log_probs).sum(-1)


def inverse_cdf(log_probs: Tensor, uniform: Tensor) -> Tensor:
    """(N, C) log-probs and (N,) float64 draws -> (N,) sampled columns; a row depends on its own draw only."""
    cumulative = log_probs.double().exp().cumsum(-1)
    target = uniform[:, None] * cumulative[:, -1:]  # the sum is 1 only up to rounding
    return torch.searchsorted(cumulative, target, right=True)[:, 0].clamp(max=log_probs.shape[-1] - 1)
