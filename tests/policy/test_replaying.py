"""Graphs of learning's passes give the gradients of the passes themselves, while the adapter changes under them."""

import pytest
import torch
from torch import Tensor

from stages.params import LoraParams
from stages.policy.policy import VLAPolicy
from stages.policy.replaying import MOST
from tests.policy.test_learning import adapted, score

on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def there(lora: LoraParams | None = None) -> VLAPolicy:
    here = adapted() if lora is None else adapted(lora)
    here.model.to("cuda")
    policy = VLAPolicy(here.model, here.tokenizer, torch.device("cuda"))
    policy._peft = here._peft
    policy.model.train()
    return policy


def gradients(policy: VLAPolicy, *sizes: int) -> dict[str, Tensor | None]:
    """Of passes whose forward halves all come before their backward ones."""
    for _, parameter in policy.trainable_parameters():
        parameter.grad = None
    for log_prob in [score(policy, n).log_prob for n in sizes]:
        log_prob.sum().backward()
    return {
        name: None if parameter.grad is None else parameter.grad.clone()
        for name, parameter in policy.trainable_parameters()
    }


@on_gpu
@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "down_proj"]])
def test_they_give_the_gradients_of_the_passes_themselves(targets: str | list[str]) -> None:
    """Of several shapes, of passes that add up, of forward passes in a row, and after steps of an optimiser."""
    lora = LoraParams(rank=4, alpha=8, dropout=0.0, target_modules=targets)
    plain, replayed = there(lora), there(lora)
    replayed.replay_learning(True)
    optimizers = [torch.optim.SGD([q for _, q in p.trainable_parameters()], lr=0.05) for p in (plain, replayed)]
    for sizes in ((3,), (2, 3), (3, 3), (MOST,), (MOST + 1,), (3,)):
        want, got = gradients(plain, *sizes), gradients(replayed, *sizes)
        for name, gradient in want.items():
            if gradient is None:
                assert got[name] is None, name
            else:
                torch.testing.assert_close(got[name], gradient, rtol=1e-3, atol=1e-4, msg=name)
        for optimizer in optimizers:
            optimizer.step()
        torch.testing.assert_close(score(replayed, 3).log_prob, score(plain, 3).log_prob, rtol=1e-3, atol=1e-4)
    assert replayed._replays is not None and len(replayed._replays._passes) == 3
    replayed.replay_learning(False)
    assert replayed._replays is None


@on_gpu
def test_the_reference_and_passes_without_gradient_are_not_replayed() -> None:
    policy = there()
    policy.replay_learning(True)
    with torch.no_grad(), policy.reference():
        base = score(policy, 2).log_prob
    assert policy._replays is None
    assert (score(policy, 2).log_prob - base).abs().max() > 1e-4
    assert policy._replays is not None


def test_on_a_cpu_nothing_is_replayed() -> None:
    policy = adapted()
    policy.replay_learning(True)
    score(policy, 2).log_prob.sum().backward()
    assert policy._replays is None
