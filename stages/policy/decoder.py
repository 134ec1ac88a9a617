"""Llama as acting and learning run it, over the weights of transformers' own, and with its arithmetic.

transformers' forward builds masks and grows caches, which CUDA graphs cannot hold and small models feel, and it computes
every position of every layer. Here a decision reads and writes a cache that is allocated once, and of the last layer only
the positions that are asked for are computed.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaForCausalLM

from stages.errors import MismatchError
from stages.policy import fused
from stages.policy.linears import JointLinear, fuse_rows, is_plain

Make = Callable[[Sequence[nn.Module]], JointLinear]


class Decoder:
    """The layers and final norm of a `LlamaForCausalLM`."""

    def __init__(self, llama: LlamaForCausalLM, make: Make) -> None:
        """
        Raises:
            MismatchError: an adapter that is no plain LoRA of a linear map.
        """
        self.config = llama.config
        self.head_dim: int = getattr(llama.config, "head_dim", None) or (
            llama.config.hidden_size // llama.config.num_attention_heads
        )
        self.layers = [_Layer(layer, self, make) for layer in llama.model.layers]
        self._norm = llama.model.norm.weight
        self._rotary = llama.model.rotary_emb

    @property
    def linears(self) -> list[JointLinear]:
        """All joined maps, layer by layer."""
        return [linear for layer in self.layers for linear in (layer.qkv, layer.o, layer.gate_up, layer.down)]

    def new_cache(self, batch: int, length: int) -> Tensor:
        """(layers, 2, batch, kv_heads, length, head_dim): keys and values of every layer."""
        return self._norm.detach().new_empty(len(self.layers), 2, batch, self.layers[0].kv_heads, length, self.head_dim)

    def rotations(self, length: int) -> tuple[Tensor, Tensor]:
        """Cosines and sines (length, 1, head_dim) of the positions 0..length-1, in the model's dtype."""
        cos, sin = self._rotary(self._norm, torch.arange(length, device=self._norm.device)[None])
        return cos[0][:, None], sin[0][:, None]

    def advance(self, x: Tensor, cache: Tensor, rotations: tuple[Tensor, Tensor], start: int) -> Tensor:
        """The last hidden state (N, hidden) of the last of the positions in `x`; a prefill, or one step.

        Args:
            x: (N, T, hidden) embeddings of positions start..start+T-1; a prefill has start 0, a step has T 1.
            cache: of `new_cache`, for N; positions before `start` are read, those of `x` are written.
            rotations: of `rotations`, at least start+T long.
        """
        cos, sin = (table[start : start + x.shape[1]] for table in rotations)
        for layer, of_layer in zip(self.layers, cache, strict=True):
            x = layer.advance(x, of_layer, cos, sin, start, last=layer is self.layers[-1])
        return self._normed(x[:, -1])

    def hidden_states(self, x: Tensor, keep: int) -> Tensor:
        """The last hidden states (N, keep, hidden) of the last positions of a causal sequence; differentiable.

        Layers that transformers marked for it (`gradient_checkpointing`, in training mode) are computed twice rather than
        kept.
        """
        cos, sin = self.rotations(x.shape[1])
        for layer in self.layers:
            of_last = keep if layer is self.layers[-1] else 0
            if layer.module.gradient_checkpointing and layer.module.training and torch.is_grad_enabled():
                x = checkpoint(layer.learn, x, cos, sin, of_last, use_reentrant=False)
            else:
                x = layer.learn(x, cos, sin, of_last)
        return self._normed(x)

    def _normed(self, x: Tensor) -> Tensor:
        return fused.rms_norm(x, self._norm, self.config.rms_norm_eps)


def join_weights(llama: LlamaForCausalLM) -> None:
    """Joins the weights that a `Decoder` reads as one, which its first pass would do otherwise.

    On a GPU that pass finds the memory cut up by the pieces that are left over; here they can still be given back.
    """
    for layer in llama.model.layers:
        attention, mlp = layer.self_attn, layer.mlp
        fuse_rows([attention.q_proj, attention.k_proj, attention.v_proj])
        fuse_rows([mlp.gate_proj, mlp.up_proj])


class _Layer:
    """One decoder layer."""

    def __init__(self, layer: LlamaDecoderLayer, decoder: Decoder, make: Make) -> None:
        config = decoder.config
        self.module: Any = layer
        self.heads: int = config.num_attention_heads
        self.kv_heads: int = config.num_key_value_heads or self.heads
        self.head_dim, self.eps = decoder.head_dim, config.rms_norm_eps
        attention, mlp = layer.self_attn, layer.mlp
        self.qkv = _join(make, attention.q_proj, attention.k_proj, attention.v_proj)
        self.o = _join(make, attention.o_proj)
        self.gate_up = _join(make, mlp.gate_proj, mlp.up_proj)
        self.down = _join(make, mlp.down_proj)

    def advance(self, x: Tensor, cache: Tensor, cos: Tensor, sin: Tensor, start: int, last: bool) -> Tensor:
        """See `Decoder.advance`; of the last layer, the last position alone."""
        end = start + x.shape[1]
        keys, values = cache[0, :, :, start:end], cache[1, :, :, start:end]
        q, k, v = fused.rotate_into(self._project(x), cos, sin, self.heads, self.kv_heads, keys, values)
        if start:
            k, v = cache[0, :, :, :end], cache[1, :, :, :end]
        if last:
            q, x = q[:, :, -1:], x[:, -1:]
        return self._finish(x, self._attend(q, k, v, is_causal=q.shape[2] > 1))

    def learn(self, x: Tensor, cos: Tensor, sin: Tensor, keep: int) -> Tensor:
        """(N, T, hidden) -> (N, T, hidden), or its last `keep` positions where that is not 0."""
        q, k, v = fused.rotate(self._project(x), cos, sin, self.heads, self.kv_heads)
        if not keep:
            return self._finish(x, self._attend(q, k, v, is_causal=True))
        length = x.shape[1]
        mask = torch.ones(keep, length, dtype=torch.bool, device=x.device).tril(length - keep)
        return self._finish(x[:, -keep:], self._attend(q[:, :, -keep:], k, v, attn_mask=mask))

    def _project(self, x: Tensor) -> Tensor:
        """Queries, keys and values (N, T, heads, head_dim), before they are turned."""
        normed = fused.rms_norm(x, self.module.input_layernorm.weight, self.eps)
        return self.qkv(normed).view(*x.shape[:2], -1, self.head_dim)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, **causal: Any) -> Tensor:
        attended = F.scaled_dot_product_attention(q, k, v, enable_gqa=self.heads != self.kv_heads, **causal)
        return attended.transpose(1, 2).flatten(2)

    def _finish(self, x: Tensor, attended: Tensor) -> Tensor:
        x = self.o.add(x, attended)
        normed = fused.rms_norm(x, self.module.post_attention_layernorm.weight, self.eps)
        return self.down.add(x, fused.swiglu(self.gate_up(normed)))


def _join(make: Make, *parts: nn.Module) -> JointLinear:
    if not all(is_plain(part) for part in parts):
        raise MismatchError(
            "the adapter on the language model is no plain LoRA (DoRA, biases, several adapters?), which tgrpo does not "
            "compute; merge it into its base with peft first"
        )
    return make(parts)
