"""Checkpointed activations and mixed precision change what learning costs, and the gradients by rounding at most."""

import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from stages.params import LoraParams, Params, VisionTowerParams
from stages.policy.learning import (
    checkpoint_activations,
)
from stages.policy.memory import peak_bytes
from stages.policy.policy import TokenScores, VLAPolicy
from tests.policy.tiny import INSTRUCTION, LORA, make_policy

LANGUAGE_ONLY = ["q_proj", "v_proj", "down_proj"]


def adapted(lora: LoraParams = LORA) -> VLAPolicy:
    """A policy of five blocks a tower and six layers, with an adapter that matters."""
    tower = VisionTowerParams(width=20, depth=5, heads=2)
    deeper = make_policy(dinov2=tower, siglip=tower, layers=6)
    deeper.add_lora(lora, seed=1)
    return stir(deeper)


def stir(policy: VLAPolicy, deviation: float = 0.1) -> VLAPolicy:
    """Gives B of the adapter, zero at first, numbers of this standard deviation."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in policy.trainable_parameters():
            if "lora_B" in name:
                parameter.copy_(deviation * torch.randn(parameter.shape, generator=generator))
    return policy


def score(policy: VLAPolicy, n: int = 6) -> TokenScores:
    """n decisions on images of noise in blocks of 8 pixels."""
    rng = np.random.default_rng(5)
    size = policy.config.image_size
    images = rng.integers(256, size=(n, size // 8, size // 8, 3), dtype=np.uint8).repeat(8, 1).repeat(8, 2)
    tokens = rng.integers(policy.token_ids[0], policy.token_ids[-1], (n, 7))
    return policy.log_prob(images, rng.normal(size=(n, 8)).astype(np.float32), INSTRUCTION, tokens)


def learn(policy: VLAPolicy, n: int = 6) -> dict[str, Tensor]:
    """The gradients of the summed log-probs of n decisions."""
    for _, parameter in policy.trainable_parameters():
        parameter.grad = None
    score(policy, n).log_prob.sum().backward()
    return {name: parameter.grad for name, parameter in policy.trainable_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("targets", ["all-linear", LANGUAGE_ONLY])
def test_checkpointed_activations_give_the_same_gradients_for_less_memory(targets: str | list[str]) -> None:
    lora = LORA.model_copy(update={"target_modules": targets})
    plain, checkpointed = adapted(lora), adapted(lora)
    checkpoint_activations(checkpointed.model)
    expected, found = learn(plain), learn(checkpointed)
    assert expected.keys() == found.keys() and len(found) == len(plain.trainable_parameters())
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, msg=name)
    before, after = (peak_bytes(lambda p=p: learn(p, 32), p.device) for p in (plain, checkpointed))
    assert after < 0.5 * before


def test_the_vision_towers_are_checkpointed_too() -> None:
    peaks = []
    for checkpointing in (False, True):
        policy = adapted()
        if checkpointing:
            checkpoint_activations(policy.model)
        towers, pixels = policy.model.vision_backbone, torch.zeros(32, 6, 32, 32)
        peaks.append(peak_bytes(lambda: towers(pixels).sum().backward(), policy.device))  # noqa: B023
    assert peaks[1] < 0.6 * peaks[0]


def test_checkpointing_before_the_adapter_is_the_same_as_after() -> None:
    """peft, seeing checkpointed layers, would have the embeddings' outputs take gradients, which nothing needs here."""
    early = make_policy()
    checkpoint_activations(early.model)
    early.add_lora(LORA.model_copy(update={"target_modules": LANGUAGE_ONLY}), seed=1)
    assert not early.model.get_input_embeddings()(torch.tensor([[1]])).requires_grad
    assert learn(early, 2)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_vision_towers_that_no_gradient_reaches_keep_nothing(checkpointing: bool) -> None:
    policy = adapted(LORA.model_copy(update={"target_modules": LANGUAGE_ONLY}))
    if checkpointing:
        checkpoint_activations(policy.model)
    kept: list[weakref.ref[Tensor]] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(weakref.ref(tensor))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        scores = score(policy)
    alive = [tensor for tensor in (reference() for reference in kept) if tensor is not None]
    widths = {policy.config.towers[0].embed_dim, policy.config.towers[0].mlp_hidden}
    assert scores.log_prob.requires_grad and alive
    assert not any(tensor.dim() == 3 and tensor.shape[-1] in widths for tensor in alive)
    assert not any("vision" in name for name in learn(policy))


def in_dtype(dtype: str, embedded: Path, params: Params, **changes: bool) -> VLAPolicy:
    policy = VLAPolicy.load(embedded, "cpu", trainable=True, dtype=dtype, **changes)
    policy.add_lora(params.policy.lora, seed=1)
    return stir(policy, 0.02)


def test_in_bfloat16_adapters_are_float32_masters_with_the_gradients_of_float32(embedded: Path, params: Params) -> None:
    expected, found = (learn(in_dtype(dtype, embedded, params)) for dtype in ("float32", "bfloat16"))
    assert {gradient.dtype for gradient in found.values()} == {torch.float32}
    a, b = (torch.cat([gradients[name].flatten() for name in expected]) for gradients in (expected, found))
    assert 0.99 < torch.cosine_similarity(a, b, dim=0) < 0.99999


def test_a_checkpoint_that_is_loaded_in_bfloat16_learns_in_it(embedded: Path, params: Params) -> None:
    policy = in_dtype("bfloat16", embedded, params, gradient_checkpointing=True)
    assert policy.model.dtype == torch.bfloat16
    assert {parameter.dtype for _, parameter in policy.trainable_parameters()} == {torch.float32}
    kept: set[tuple[torch.dtype, int]] = set()

    def keep(tensor: Tensor) -> Tensor:
        kept.add((tensor.dtype, len(tensor) if tensor.dim() == 2 else 0))
        return tensor

    policy.model.eval()  # without checkpoints first, to see what is kept
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        score(policy)
    # Inputs of matrix products are rows of all positions: no float32 copy of the activations is made for the adapter.
    rows = 6 * (policy.prompt(INSTRUCTION).shape[1] + 36 + 1 + 6)
    assert (torch.bfloat16, rows) in kept and (torch.float32, rows) not in kept
    policy.model.train()
    scores = score(policy)
    assert scores.log_prob.dtype == scores.log_probs_all.dtype == torch.float32
    scores.log_prob.sum().backward()  # computes the blocks again, outside of log_prob
    layer = policy.model.language_model.model.layers[0]
    assert layer.self_attn.q_proj.lora_B["default"].weight.grad.abs().sum() > 0
