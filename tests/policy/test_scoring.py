"""The learning path against peft's and transformers' own forward: the same numbers and the same gradients."""

import pytest
import torch
from torch import Tensor

from stages.policy.learning import checkpoint_activations
from stages.policy.policy import VLAPolicy
from stages.policy.scoring import ScoringModel
from tests.policy.test_acting import adapted_policy
from tests.policy.tiny import INSTRUCTION, make_policy, observations


def inputs(policy: VLAPolicy, n: int = 3) -> tuple[Tensor, Tensor, Tensor | None]:
    images, proprio = observations(n)
    pixel_values = policy.transform.normalize(policy.prepare(images).pixels).to(policy.model.dtype)
    ids = torch.cat([policy.prompt(INSTRUCTION).expand(n, -1), torch.full((n, 6), 300)], dim=1)
    return pixel_values, ids, policy._normalized(proprio)


def gradients(policy: VLAPolicy, hidden: Tensor) -> dict[str, Tensor]:
    """Of an arbitrary scalar, by parameter."""
    policy.model.zero_grad()
    weights = torch.randn(hidden.shape, generator=torch.Generator().manual_seed(7))
    (hidden.float() * weights).sum().backward()
    return {name: p.grad.clone() for name, p in policy.model.named_parameters() if p.grad is not None}


def plain(policy: VLAPolicy, n: int = 3) -> Tensor:
    """transformers' Llama and peft's layers, every position, the last seven taken."""
    pixel_values, ids, proprio = inputs(policy, n)
    return policy.model.hidden_states(policy.model.embed(pixel_values, ids, proprio))[:, -7:]


@pytest.mark.parametrize("fold", [True, False])
def test_hidden_states_and_gradients_are_pefts(fold: bool) -> None:
    policy = adapted_policy()
    want = plain(policy)
    wanted = gradients(policy, want)
    got = ScoringModel(policy.model, fold)(*inputs(policy), keep=7)
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)
    found = gradients(policy, got)
    assert found.keys() == wanted.keys() and all("lora_" in name for name in found)
    for name, gradient in wanted.items():
        torch.testing.assert_close(
            found[name], gradient, atol=1e-4, rtol=1e-3, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize("fold", [True, False])
def test_with_the_adapter_off_it_is_the_base(fold: bool) -> None:
    policy = adapted_policy()
    scoring = ScoringModel(policy.model, fold)
    with policy.reference(), torch.no_grad():
        off = scoring(*inputs(policy), keep=7)
    with torch.no_grad():
        torch.testing.assert_close(off, plain(make_policy()), atol=1e-5, rtol=0)
        assert (scoring(*inputs(policy), keep=7) - off).abs().max() > 1e-3


def test_a_base_that_trains_gets_all_its_gradients() -> None:
    policy = make_policy()
    policy.engine()  # joins the weights of query, key and value
    wanted = gradients(policy, plain(policy))
    found = gradients(policy, ScoringModel(policy.model, fold=True)(*inputs(policy), keep=7))
    assert found.keys() == wanted.keys() and len(found) > 50
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-4, rtol=1e-3)


def test_activations_computed_twice_give_the_same_gradients() -> None:
    kept, twice = adapted_policy(), adapted_policy()
    checkpoint_activations(twice.model)
    wanted = gradients(kept, ScoringModel(kept.model, fold=False)(*inputs(kept), keep=7))
    found = gradients(twice, ScoringModel(twice.model, fold=False)(*inputs(twice), keep=7))
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, atol=0, rtol=0)


def test_in_bfloat16_masters_stay_float32_and_gradients_point_the_same_way() -> None:
    exact, rounded = adapted_policy(), adapted_policy()
    for name, parameter in rounded.model.named_parameters():
        if "lora_" not in name:
            parameter.data = parameter.data.to(torch.bfloat16)
    wanted = gradients(exact, ScoringModel(exact.model, fold=True)(*inputs(exact), keep=7))
    hidden = ScoringModel(rounded.model, fold=False)(*inputs(rounded), keep=7)
    assert hidden.dtype == torch.bfloat16
    found = gradients(rounded, hidden)
    assert all(gradient.dtype == torch.float32 for gradient in found.values())
    a, b = (torch.cat([grads[name].flatten() for name in wanted]) for grads in (wanted, found))
    assert torch.cosine_similarity(a, b, dim=0) > 0.99
