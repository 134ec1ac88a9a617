"""FLOPs and parameters counted from shapes, against what torch counts while the model runs."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from stages.arithmetic import Arithmetic
from stages.params import LoraParams, VisionTowerParams
from stages.policy.config import OpenVLAConfig
from stages.policy.learning import checkpoint_activations
from stages.policy.policy import VLAPolicy
from stages.policy.tokenizer import prompt_ids
from tests.policy.tiny import INSTRUCTION, LORA, make_policy, observations

SHAPES: list[dict[str, Any]] = [
    {},
    {"stem": "patch", "proprio": False},
    {"layers": 3, "siglip": VisionTowerParams(width=24, depth=4, heads=2)},
]
N = 3
IMAGES, PROPRIO = observations(N)
TOKENS = np.random.default_rng(0).integers(144, 400, (N, 7))


def _flops(run: Callable[[], object]) -> int:
    """For each of N observations; attention as plain matrix products, because the counter knows no other on a CPU."""
    in_place = {torch.ops.aten.addmm_: lambda _, a, b, *rest, **named: 2 * a[0] * a[1] * b[1]}  # nor these products
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False, custom_mapping=in_place) as counter:
        run()
    assert counter.get_total_flops() % N == 0
    return counter.get_total_flops() // N


def _count(policy: VLAPolicy) -> Arithmetic:
    return Arithmetic(policy.config, len(prompt_ids(policy.tokenizer, INSTRUCTION)))


def _score(policy: VLAPolicy) -> torch.Tensor:
    return policy.log_prob(IMAGES, PROPRIO, INSTRUCTION, TOKENS).log_prob.sum()


@pytest.fixture(params=SHAPES, ids=str)
def policy(request: pytest.FixtureRequest) -> VLAPolicy:
    return make_policy(**request.param)


def test_openvla_7b() -> None:
    """By hand: 32 blocks of 4 x 4096^2 + 3 x 4096 x 11008 weights, and 256 rows of 4096, at two bytes each."""
    count = Arithmetic(OpenVLAConfig(), prompt_tokens=26)
    assert count.parameters == 7_541_237_184
    assert count.prompt_length == 26 + 256
    assert count.sequence == 26 + 256 + 6
    assert count.decode_bytes(2) == 2 * (32 * (4 * 4096**2 + 3 * 4096 * 11008) + 256 * 4096)
    assert count.cache_bytes(2) == 288 * 32 * 2 * 4096 * 2
    assert count.decode_flops() == count.decode_bytes(2) + 32 * 4 * 288 * 4096  # two bytes, two FLOPs a weight


def test_parameters(policy: VLAPolicy) -> None:
    assert _count(policy).parameters == sum(parameter.numel() for parameter in policy.model.parameters())


def test_acting(policy: VLAPolicy) -> None:
    """What acting computes is what is counted: a decision does nothing that it need not."""
    count, llama = _count(policy), policy.config.llama
    policy.model.requires_grad_(False)  # the counter stumbles over gradients in inference mode
    acted = _flops(lambda: policy.act(IMAGES, PROPRIO, INSTRUCTION, 0.0))
    # Each step's context is one longer than that of the step before; counted is the longest.
    shorter = sum(llama.num_hidden_layers * 4 * llama.hidden_size * fewer for fewer in range(6))
    assert acted == count.vision_flops + count.prompt_flops() + 6 * count.decode_flops() - shorter


def test_scoring(policy: VLAPolicy) -> None:
    with torch.no_grad():
        assert _flops(lambda: _score(policy)) == _count(policy).forward_flops()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_learning(shape: dict[str, Any], checkpointing: bool) -> None:
    """In bfloat16 adapters run beside the weights. Those of maps that are computed as one take more than is counted."""
    apart = ["attn.qkv", "attn.proj", "fc1", "fc2", "fc3", "o_proj", "down_proj"]
    lora = LORA.model_copy(update={"target_modules": apart})
    policy = make_policy(**shape)
    policy.model.to(torch.bfloat16)
    policy.add_lora(lora, 0)
    if checkpointing:
        checkpoint_activations(policy.model)
    flops = _flops(lambda: _score(policy).backward())
    counted = _count(policy).learning_flops(lora, checkpointing)
    if checkpointing:  # the last product of a block need not be computed again
        assert 0.9 * counted < flops <= counted
    else:
        assert flops == counted


@pytest.mark.parametrize(
    "targets", ["all-linear", ["q_proj", "mlp.fc1"], r"language_model\..*\.(q|v)_proj", ["patch_embed.proj.0"]]
)
def test_parameters_of_the_adapter(targets: str | list[str]) -> None:
    lora: LoraParams = LORA.model_copy(update={"target_modules": targets})
    policy = make_policy()
    count = _count(policy)
    policy.add_lora(lora, 0)
    assert count.lora_parameters(lora) == sum(parameter.numel() for _, parameter in policy.trainable_parameters())
