"""What a policy of some configuration costs, counted from its shapes and not measured: parameters, FLOPs, bytes.

A linear layer of i inputs and o outputs takes 2 i o FLOPs for each token, a convolution as many for each position that it
writes (i: its whole window), attention 4 q k w for q queries on k keys of width w (all of them, whatever the mask hides).
What follows no matrix, such as norms and softmax, is left out, as torch.utils.flop_counter leaves it out.

A backward pass computes the gradients of inputs, for as many FLOPs as forward, but none of frozen weights; attention takes
twice its forward. A LoRA adapter of rank r adds 2 r (i + o) to a layer's forward and twice that to its backward. Gradient
checkpointing runs the blocks' forward once more.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import nn

from stages.params import LoraParams
from stages.policy.config import OpenVLAConfig
from stages.policy.modeling import OpenVLAForActionPrediction
from stages.types import ACTION_DIM

Part = Literal["dinov2", "siglip", "projector", "language", "unused"]
_TOWERS: dict[str, Part] = {"featurizer": "dinov2", "fused_featurizer": "siglip"}


@dataclass(frozen=True)
class Matrix:
    """The weight of a linear layer, or of a convolution as the linear map of its window."""

    name: str  # as in the checkpoint, without `.weight`
    part: Part  # `unused`: in the checkpoint, but nothing flows through it
    inputs: int
    outputs: int
    linear: bool  # what LoRA's `all-linear` adapts; a convolution it leaves alone
    block: bool  # inside a transformer block, which gradient checkpointing runs twice
    positions: int  # of one observation, at which it is applied; of the language model 0: each call has its own

    @property
    def size(self) -> int:
        return self.inputs * self.outputs


@dataclass(frozen=True)
class Arithmetic:
    """The counts of one configuration for prompts of one length."""

    config: OpenVLAConfig
    prompt_tokens: int  # P, BOS included

    @cached_property
    def parameters(self) -> int:
        """Of the whole checkpoint, those that nothing flows through included."""
        return sum(parameter.numel() for parameter in self._model.parameters())

    @cached_property
    def matrices(self) -> list[Matrix]:
        """All but lm_head, of which only the rows of the action tokens count."""
        return [
            self._matrix(name, module)
            for name, module in self._model.named_modules()
            if isinstance(module, nn.Linear | nn.Conv2d) and not name.endswith("lm_head")
        ]

    @property
    def patches(self) -> int:
        return (self.config.image_size // self.config.towers[0].patch_size) ** 2

    @property
    def prompt_length(self) -> int:
        """Tokens of an observation: text, image patches, proprioception."""
        return self.prompt_tokens + self.patches + (1 if self.config.proprio_dim else 0)

    @property
    def sequence(self) -> int:
        """Tokens of an observation and its action, but for the last action token, which nothing follows."""
        return self.prompt_length + ACTION_DIM - 1

    @cached_property
    def vision_flops(self) -> int:
        """One image through both towers and the projector; proprioception too."""
        return self._matrix_flops("dinov2", "siglip", "projector") + sum(self._tower_attention())

    def prompt_flops(self) -> int:
        """One observation through the language model, and the first action token's logits."""
        return self._language_flops(self.prompt_length, kept=1) + self._head_flops(1)

    def decode_flops(self) -> int:
        """One further action token; the longest context."""
        attention = self.config.llama.num_hidden_layers * 4 * self.sequence * self._query_width
        return 2 * self._language_size + attention + self._head_flops(1)

    def vision_bytes(self, itemsize: int) -> int:
        """Of the weights that `vision_flops` reads, at `itemsize` bytes a value."""
        return itemsize * sum(m.size for m in self.matrices if m.part in ("dinov2", "siglip", "projector"))

    def decode_bytes(self, itemsize: int) -> int:
        """Of the weights that every decode step reads: the blocks and the action tokens' rows of lm_head.

        No embeddings (one row each), no other row of lm_head, no vision; and no key-value cache: see `cache_bytes`.
        """
        return itemsize * (self._language_size + self.config.n_action_bins * self.config.llama.hidden_size)

    def cache_bytes(self, itemsize: int) -> int:
        """Keys and values of one whole sequence."""
        llama = self.config.llama
        width = next(m.outputs for m in self.matrices if m.name.endswith("k_proj"))
        return itemsize * 2 * llama.num_hidden_layers * width * self.sequence

    def forward_flops(self) -> int:
        """One decision scored: the whole sequence, and the logits of its seven action tokens."""
        return self.vision_flops + self._language_flops(self.sequence, kept=ACTION_DIM) + self._head_flops(ACTION_DIM)

    def adapted(self, lora: LoraParams) -> list[Matrix]:
        """The matrices that get an adapter: all linear layers, those whose name ends in one of a list, or a pattern's."""
        targets = lora.target_modules
        if targets == "all-linear":
            return [m for m in self.matrices if m.linear]
        if isinstance(targets, str):
            return [m for m in self.matrices if re.fullmatch(targets, m.name)]
        return [m for m in self.matrices if any(f".{m.name}".endswith(f".{target}") for target in targets)]

    def lora_parameters(self, lora: LoraParams) -> int:
        """Of the adapter, those on matrices that nothing flows through included."""
        return sum(lora.rank * (m.inputs + m.outputs) for m in self.adapted(lora))

    def learning_flops(self, lora: LoraParams, checkpointing: bool) -> int:
        """One decision scored and differentiated by the adapter: forward, backward and, with checkpointing, blocks again.

        An adapter on the language model alone saves what its first layer would pass back, which is not deducted; nor is
        the end of each block, which a second forward may leave out.
        """
        adapted = {m.name for m in self.adapted(lora)}
        flops = self.forward_flops() + self._head_flops(ACTION_DIM)
        upstream = False  # whether anything that learns lies between an image and here
        for part, attention in zip(_TOWERS.values(), self._tower_attention(), strict=True):
            if any(m.name in adapted for m in self.matrices if m.part == part):
                flops += self._again(part, checkpointing) + (2 + checkpointing) * attention
                upstream = True
        if upstream or any(m.name in adapted for m in self.matrices if m.part == "projector"):
            flops += self._again("projector", checkpointing)
        attention = self._language_attention(self.sequence, kept=ACTION_DIM)
        flops += self._again("language", checkpointing) + (2 + checkpointing) * attention
        return flops + sum(self._adapter_flops(m, lora.rank, checkpointing) for m in self.matrices if m.name in adapted)

    @cached_property
    def _model(self) -> OpenVLAForActionPrediction:
        with torch.device("meta"):  # shapes without memory
            return OpenVLAForActionPrediction(self.config)

    @property
    def _language_size(self) -> int:
        return sum(m.size for m in self.matrices if m.part == "language")

    def _matrix(self, name: str, module: nn.Linear | nn.Conv2d) -> Matrix:
        outputs, inputs = module.weight.shape[0], module.weight[0].numel()
        part, positions = self._place(name, module)
        linear = isinstance(module, nn.Linear)
        return Matrix(name, part, inputs, outputs, linear, ".blocks." in name or ".layers." in name, positions)

    def _place(self, name: str, module: nn.Module) -> tuple[Part, int]:
        top, _, rest = name.partition(".")
        if top == "language_model":
            return "language", 0
        if top == "projector":
            return "projector", self.patches
        if top == "proprio_projector":
            return "projector", 1
        index = list(_TOWERS).index(rest.split(".")[0])
        tower, part = self.config.towers[index], list(_TOWERS.values())[index]
        if ".patch_embed." in name:
            return part, self._written(name)
        block = re.search(r"\.blocks\.(\d+)\.", name)
        used = block is not None and int(block[1]) < tower.depth - 1
        return (part, self.patches + tower.num_prefix_tokens) if used else ("unused", 0)

    def _written(self, name: str) -> int:
        """Positions that a convolution of a stem writes, the strides of those before it counted in."""
        stem = name[: name.index(".patch_embed.")] + ".patch_embed"
        side = self.config.image_size
        for within, module in self._model.get_submodule(stem).named_modules():
            if isinstance(module, nn.Conv2d):
                side = (side + 2 * int(module.padding[0]) - module.kernel_size[0]) // module.stride[0] + 1
                if f"{stem}.{within}" == name:
                    break
        return side * side

    def _positions(self, matrix: Matrix, length: int = 0, kept: int = ACTION_DIM) -> int:
        """Where a matrix is applied; in the language model by default for scoring.

        In its last block, positions whose hidden state nobody asks for go no further than queries, keys and values.
        """
        if matrix.part != "language":
            return matrix.positions
        last = f".layers.{self.config.llama.num_hidden_layers - 1}." in matrix.name
        return kept if last and not matrix.name.endswith(("q_proj", "k_proj", "v_proj")) else length or self.sequence

    def _matrix_flops(self, *parts: Part) -> int:
        return sum(2 * m.size * self._positions(m) for m in self.matrices if m.part in parts)

    def _tower_attention(self) -> Iterator[int]:
        for tower in self.config.towers:
            tokens = self.patches + tower.num_prefix_tokens
            yield (tower.depth - 1) * 4 * tokens * tokens * tower.embed_dim

    @property
    def _query_width(self) -> int:
        return next(m.outputs for m in self.matrices if m.name.endswith("q_proj"))

    def _language_attention(self, length: int, kept: int) -> int:
        queries = (self.config.llama.num_hidden_layers - 1) * length + kept
        return 4 * queries * length * self._query_width

    def _language_flops(self, length: int, kept: int) -> int:
        """A sequence of `length`, of which the last `kept` hidden states are asked for."""
        matrices = (m for m in self.matrices if m.part == "language")
        flops = sum(2 * m.size * self._positions(m, length, kept) for m in matrices)
        return flops + self._language_attention(length, kept)

    def _head_flops(self, rows: int) -> int:
        return 2 * rows * self.config.n_action_bins * self.config.llama.hidden_size

    def _again(self, part: Part, checkpointing: bool) -> int:
        """Gradients of inputs, and the second forward of checkpointed blocks. Stems are in front of all that learns."""
        return sum(
            2 * m.size * self._positions(m) * ((m.name not in self._leading) + (checkpointing and m.block))
            for m in self.matrices
            if m.part == part and m.linear
        )

    def _adapter_flops(self, matrix: Matrix, rank: int, checkpointing: bool) -> int:
        """Forward, gradients of its two weights and of its inputs, and forward again."""
        inwards = 3 + (checkpointing and matrix.block) - (matrix.name in self._leading)
        outwards = 3 + (checkpointing and matrix.block)
        return 2 * rank * self._positions(matrix) * (inwards * matrix.inputs + outwards * matrix.outputs)

    @cached_property
    def _leading(self) -> set[str]:
        """The first layers, which pass no gradient on because nothing in front of them learns."""
        parts = [next(m.name for m in self.matrices if m.part == part and m.linear) for part in _TOWERS.values()]
        return {*parts, "proprio_projector.fc1"}
