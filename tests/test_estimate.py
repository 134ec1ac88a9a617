"""The memory that is foretold is what a pass takes; the time is the sum of its parts."""

from typing import Any

import numpy as np
import pytest
import torch

from stages.arithmetic import Arithmetic
from stages.estimate import activation_bytes, clock, control_step, duration, memory, micro_batch, size
from stages.params import Params, VisionTowerParams, load_params
from stages.policy.config import OpenVLAConfig
from stages.policy.learning import checkpoint_activations
from stages.policy.memory import peak_bytes
from stages.policy.tokenizer import prompt_ids
from stages.roofline import Rates, Roofline
from tests.conftest import ROOT
from tests.policy.tiny import INSTRUCTION, LORA, make_policy, observations

GIB = 2**30
N = 4


@pytest.fixture
def profile() -> Params:
    return load_params(ROOT / "params" / "openvla-7b.yaml", ["eval.envs=10", "policy.gradient_checkpointing=true"])


@pytest.fixture
def count() -> Arithmetic:
    return Arithmetic(OpenVLAConfig(), prompt_tokens=26)


def _policy(params: Params, **changes: Any) -> Params:
    return params.model_copy(update={"policy": params.policy.model_copy(update=changes)})


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(
    "shape",
    [{}, {"layers": 4}, {"hidden_size": 64}, {"siglip": VisionTowerParams(width=64, depth=4, heads=2)}],
    ids=str,
)
def test_activations_are_those_of_a_pass(params: Params, shape: dict[str, Any], checkpointing: bool) -> None:
    """Measured in bfloat16, where adapters run beside the weights as on a GPU; gradients of the adapter come on top."""
    params = _policy(params, lora=LORA, gradient_checkpointing=checkpointing)
    policy = make_policy(**shape)
    policy.model.to(torch.bfloat16)
    policy.add_lora(LORA, 0)
    if checkpointing:
        checkpoint_activations(policy.model)
    images, proprio = observations(N)
    tokens = np.full((N, 7), 300)

    def learn() -> None:
        policy.log_prob(images, proprio, INSTRUCTION, tokens).log_prob.sum().backward()
        policy.model.zero_grad(set_to_none=True)

    count = Arithmetic(policy.config, len(prompt_ids(policy.tokenizer, INSTRUCTION)))
    expected = N * activation_bytes(count, params, 2) + 4 * count.lora_parameters(LORA)
    learn()  # the first pass joins weights, for good
    policy._scoring = None  # the adapters' joined copies, which the first pass makes too, are part of the estimate
    measured = peak_bytes(learn, torch.device("cpu"))
    assert 0.9 * measured < expected < 1.2 * measured


def test_a_40_gb_gpu_serves_openvla_7b(count: Arithmetic, profile: Params) -> None:
    needed = memory(count, profile, itemsize=2, decisions=4, folds=False)
    assert needed.weights == 2 * 7_541_237_184
    assert needed.adapter == 16 * count.lora_parameters(profile.policy.lora)
    assert needed.acting == 10 * count.cache_bytes(2)  # evaluation has more environments than rollout
    assert needed.total == sum(vars(needed).values())
    assert 16 * GIB < needed.total < 37 * GIB  # a GPU of 40 GB
    kept = memory(count, _policy(profile, gradient_checkpointing=False), itemsize=2, decisions=4, folds=False)
    assert kept.learning > 5 * needed.learning
    assert memory(count, profile, itemsize=4, decisions=4, folds=True).total > 60 * GIB


def test_decisions_in_a_pass(count: Arithmetic, profile: Params) -> None:
    def with_update(**changes: Any) -> Params:
        return profile.model_copy(update={"update": profile.update.model_copy(update=changes)})

    each = activation_bytes(count, profile, 2)
    assert micro_batch(count, with_update(micro_batch=3), 2) == 3
    assert micro_batch(count, with_update(micro_batch=0, memory_gb=None, minibatch=8), 2) == 8
    assert micro_batch(count, with_update(micro_batch=0, memory_gb=2.5 * each / GIB, minibatch=8), 2) == 2
    assert micro_batch(count, with_update(micro_batch=0, memory_gb=0.5 * each / GIB, minibatch=8), 2) == 1


def test_the_time_is_that_of_its_parts(count: Arithmetic, profile: Params) -> None:
    """Four environments on two cores take two steps of LIBERO's in turn; a group is 4 x 200 decisions."""
    rates = Rates(bandwidth=1e12, matmul=1e14)
    roofline = Roofline(count, 2, rates)
    time = duration(count, profile, 2, rates, 0.5, limit=280, cores=2, assets="libero")
    assert time.decisions == 200
    assert time.act == pytest.approx(2 * roofline.act(4))
    assert time.sim == pytest.approx(2 * control_step(profile.sim, "libero"))
    learning = roofline.learn(800, profile.policy.lora, checkpointing=True)
    assert time.update == pytest.approx(2 * (learning + roofline.score(800)))
    assert time.iteration == pytest.approx(200 * (time.act + time.sim) + time.update)
    assert time.training == pytest.approx(30 * time.iteration)
    evaluation_step = 2 * roofline.act(10) + 5 * control_step(profile.sim, "libero")
    assert time.evaluation == pytest.approx(5 * 280 * evaluation_step)


def test_the_roofline_is_the_slower_of_reading_and_multiplying(count: Arithmetic) -> None:
    """One token of one observation reads 12.95 GB for 13.1 GFLOP; a thousand observations multiply for longer."""
    roofline = Roofline(count, 2, Rates(bandwidth=1e12, matmul=1e14))
    assert roofline.decode(1) == pytest.approx(count.decode_bytes(2) / 1e12)
    assert roofline.decode(1000) == pytest.approx(1000 * count.decode_flops() / 1e14)
    assert roofline.act(4) == pytest.approx(roofline.prefill(4) + 6 * roofline.decode(4))


@pytest.mark.parametrize(
    ("seconds", "says"),
    [
        (0.0254, "25 ms"),
        (12.4, "12 seconds"),
        (89.0, "89 seconds"),
        (91.0, "1.5 minutes"),
        (5200.0, "87 minutes"),
        (5500.0, "1.5 hours"),
        (3 * 86400.0, "3.0 days"),
        (371 * 86400.0, "371 days"),
    ],
)
def test_seconds_in_words(seconds: float, says: str) -> None:
    assert clock(seconds) == says


def test_bytes_in_words() -> None:
    assert size(3 * 2**29) == "1.5 GiB"
    assert size(3 * 2**19) == "1.5 MiB"
