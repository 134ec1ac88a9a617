"""The acting path against the plain forward: shared weights, both ways of adding an adapter, every shape it is asked for."""

import gc
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers.models.llama.configuration_llama import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaForCausalLM

from stages.errors import MismatchError
from stages.params import LoraParams
from stages.policy.acting import ActingEngine, capture
from stages.policy.decoder import Decoder, join_weights
from stages.policy.linears import ActingLinear, fuse_rows
from stages.policy.policy import VLAPolicy
from tests.policy.tiny import ARCHITECTURE, INSTRUCTION, LORA, NORM_STATS, make_policy, observations


def adapted_policy(lora: LoraParams = LORA, **changes: object) -> VLAPolicy:
    """A policy whose adapter does something."""
    policy = make_policy(**changes)
    policy.add_lora(lora, seed=1)
    with torch.no_grad():
        for index, (_, parameter) in enumerate(policy.trainable_parameters()):
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(index)))
    return policy


def decide(policy: VLAPolicy, fold: bool, n: int = 3, adapted: bool = True) -> torch.Tensor:
    """Log-probs (n, 7) of greedy tokens by an engine of its own."""
    engine = ActingEngine(policy.model, policy.transform, policy.token_ids, fold)
    engine.refresh(adapted)
    images, proprio = observations(n)
    state = policy._normalized(proprio)
    return engine.decide(policy.prepare(images).pixels, state, policy.prompt(INSTRUCTION), None, 1.0).log_prob


def test_an_adapter_beside_its_base_equals_one_folded_into_it() -> None:
    policy = adapted_policy()
    folded, beside = decide(policy, fold=True), decide(policy, fold=False)
    torch.testing.assert_close(beside, folded, atol=1e-5, rtol=0)
    base = decide(policy, fold=False, adapted=False)
    assert (beside - base).abs().max() > 1e-3
    torch.testing.assert_close(base, decide(make_policy(), fold=False), atol=1e-5, rtol=0)


def test_in_bfloat16_acting_and_scoring_agree_as_far_as_bfloat16_does() -> None:
    policy = adapted_policy()
    policy.model.to(torch.bfloat16)
    images, proprio = observations(8)
    acted = policy.act(images, proprio, INSTRUCTION, 1.0, torch.Generator().manual_seed(0))
    with torch.no_grad():
        scores = policy.log_prob(images, proprio, INSTRUCTION, acted.tokens)
    difference = np.abs(scores.log_prob.numpy() - acted.log_prob)
    assert 0 < difference.mean() < 0.03  # nats; bfloat16 keeps 8 bits


def test_weights_are_shared_not_copied() -> None:
    policy = adapted_policy()
    engine = ActingEngine(policy.model, policy.transform, policy.token_ids, fold=False)
    stored = {parameter.untyped_storage().data_ptr() for parameter in policy.model.parameters()}
    for linear in engine._linears:
        assert linear.weight.untyped_storage().data_ptr() in stored
    assert engine._head.untyped_storage().data_ptr() in stored


def test_fused_rows_are_the_maps_own_weights_and_fusing_twice_is_once() -> None:
    maps = [torch.nn.Linear(4, rows, bias=False) for rows in (3, 2, 5)]
    before = torch.cat([linear.weight.detach().clone() for linear in maps])
    fused = fuse_rows(maps)
    torch.testing.assert_close(fused, before, rtol=0, atol=0)
    with torch.no_grad():
        maps[1].weight.fill_(7.0)
    assert (fused[3:5] == 7).all()
    assert fuse_rows(maps).data_ptr() == fused.data_ptr()


def test_weights_joined_early_are_the_ones_that_acting_and_scoring_read() -> None:
    early, late = make_policy(), make_policy()
    join_weights(early.model.language_model)
    places = [layer.self_attn.q_proj.weight.data_ptr() for layer in early.model.language_model.model.layers]
    for policy in (early, late):
        policy.add_lora(LORA, seed=1)
    torch.testing.assert_close(decide(early, fold=False), decide(late, fold=False), rtol=0, atol=0)
    layers = early.model.language_model.model.layers
    assert [layer.self_attn.q_proj.base_layer.weight.data_ptr() for layer in layers] == places


def test_biases_and_several_adapters_of_one_input() -> None:
    torch.manual_seed(0)
    module = torch.nn.ModuleDict({"a": torch.nn.Linear(6, 4), "b": torch.nn.Linear(6, 3)})
    module.forward = lambda x: torch.cat([module["a"](x), module["b"](x)], -1)  # type: ignore[method-assign]
    adapted = get_peft_model(module, LoraConfig(r=2, lora_alpha=3, target_modules=["a", "b"], init_lora_weights=False))
    x, residual = torch.randn(2, 5, 6), torch.randn(2, 5, 7)
    with torch.no_grad():
        want = adapted(x)
        for fold in (True, False):
            linear = ActingLinear([adapted.base_model.model["a"], adapted.base_model.model["b"]], fold)
            linear.refresh(adapted=True)
            torch.testing.assert_close(linear(x), want)
            torch.testing.assert_close(linear.add(residual.clone(), x), residual + want)


def test_grouped_query_attention_is_llamas() -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    llama = LlamaForCausalLM(config).eval()
    acting = Decoder(llama, lambda parts: ActingLinear(parts, fold=False))
    x = torch.randn(3, 9, 32)
    cache, rotations = acting.new_cache(3, 9), acting.rotations(9)
    with torch.inference_mode():
        want = llama.model(inputs_embeds=x).last_hidden_state
        got = [acting.advance(x[:, :6], cache, rotations, 0)] + [
            acting.advance(x[:, t : t + 1], cache, rotations, t) for t in (6, 7, 8)
        ]
    torch.testing.assert_close(torch.stack(got, 1), want[:, 5:], atol=1e-5, rtol=0)


def test_a_batch_that_shrinks_and_grows_decides_as_each_alone() -> None:
    policy = adapted_policy()
    images, proprio = observations(5)
    for n in (4, 2, 1, 5, 3):
        acted = policy.act(images[:n], proprio[:n], INSTRUCTION, temperature=0.0)
        fresh = adapted_policy().act(images[:n], proprio[:n], INSTRUCTION, temperature=0.0)
        np.testing.assert_array_equal(acted.tokens, fresh.tokens)
        np.testing.assert_array_equal(acted.log_prob, fresh.log_prob)


def test_instructions_of_other_lengths_take_turns() -> None:
    policy = make_policy()
    images, proprio = observations(2)
    other = "push the plate to the front of the stove"
    first = policy.act(images, proprio, INSTRUCTION, temperature=0.0)
    policy.act(images, proprio, other, temperature=0.0)
    again = policy.act(images, proprio, INSTRUCTION, temperature=0.0)
    np.testing.assert_array_equal(first.log_prob, again.log_prob)


def test_what_was_decided_is_not_overwritten_by_the_next_decision() -> None:
    policy = make_policy()
    images, proprio = observations(4)
    first = policy.act(images[:2], proprio[:2], INSTRUCTION, temperature=0.0)
    kept = first.log_prob.copy()
    policy.act(images[2:], proprio[2:], INSTRUCTION, temperature=0.0)
    np.testing.assert_array_equal(first.log_prob, kept)


def full_policy() -> VLAPolicy:
    policy = make_policy()
    return VLAPolicy(policy.model, policy.tokenizer, policy.device, sampling="full")


def test_full_sampling_is_over_the_whole_vocabulary_and_scored_so() -> None:
    policy = full_policy()
    images, proprio = observations(8)
    acted = policy.act(images, proprio, INSTRUCTION, 1.0, torch.Generator().manual_seed(0))
    assert acted.tokens.min() < 400 - 256 and acted.tokens.max() < 408  # random weights choose words and dead rows too
    scores = policy.log_prob(images, proprio, INSTRUCTION, acted.tokens)
    assert scores.log_probs_all.shape == (8, 7, 408)
    np.testing.assert_allclose(scores.log_prob.detach().numpy(), acted.log_prob, atol=1e-5)
    np.testing.assert_allclose(scores.entropy.detach().numpy(), acted.entropy, atol=1e-5)
    # A token that is no action decodes to the nearest bin, as in OpenVLA's own code.
    assert np.isfinite(acted.action).all()


def test_tokens_that_are_no_actions_are_refused() -> None:
    policy = make_policy()
    images, proprio = observations(2)
    for token in (143, 400, -1):
        with pytest.raises(MismatchError, match=r"expected 144 to 399: .* policy\.sampling"):
            policy.log_prob(images, proprio, INSTRUCTION, np.array([[300] * 6 + [token]] * 2))


def test_an_adapter_of_the_output_head_counts() -> None:
    lora = LoraParams(rank=4, alpha=8, dropout=0.0, target_modules=["q_proj", "lm_head"])
    policy = adapted_policy(lora)
    images, proprio = observations(2)
    acted = policy.act(images, proprio, INSTRUCTION, 1.0, torch.Generator().manual_seed(0))
    scores = policy.log_prob(images, proprio, INSTRUCTION, acted.tokens)
    np.testing.assert_allclose(scores.log_prob.detach().numpy(), acted.log_prob, atol=1e-5)
    scores.log_prob.sum().backward()
    head = [parameter for name, parameter in policy.trainable_parameters() if "lm_head" in name]
    assert len(head) == 2 and all(parameter.grad is not None and parameter.grad.any() for parameter in head)
    with policy.reference(), torch.no_grad():
        base = make_policy().log_prob(images, proprio, INSTRUCTION, acted.tokens).log_prob
        torch.testing.assert_close(policy.log_prob(images, proprio, INSTRUCTION, acted.tokens).log_prob, base)


def test_an_adapter_that_is_no_plain_lora_is_refused() -> None:
    policy = make_policy()
    get_peft_model(policy.model, LoraConfig(r=2, target_modules=["q_proj"], use_dora=True))
    images, proprio = observations(1)
    with pytest.raises(MismatchError, match="no plain LoRA"):
        policy.act(images, proprio, INSTRUCTION, 0.0)


def test_a_policy_without_proprioception_acts() -> None:
    policy = VLAPolicy.new(ARCHITECTURE.model_copy(update={"proprio": False}), 32, NORM_STATS, 0, "cpu")
    images, proprio = observations(2)
    acted = policy.act(images, proprio, INSTRUCTION, 1.0, torch.Generator().manual_seed(0))
    scores = policy.log_prob(images, proprio, INSTRUCTION, acted.tokens)
    np.testing.assert_allclose(scores.log_prob.detach().numpy(), acted.log_prob, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_adapter_of_a_convolution_counts(dtype: torch.dtype) -> None:
    """OpenVLA's own fine-tuning put one on the patch embeddings."""
    policy = adapted_policy(LoraParams(rank=4, alpha=8, dropout=0.0, target_modules=["q_proj", "proj"]), stem="patch")
    for name, parameter in policy.model.named_parameters():
        if "lora_" not in name:
            parameter.data = parameter.data.to(dtype)
    tolerance = 1e-5 if dtype == torch.float32 else 0.1
    images, proprio = observations(2)
    acted = policy.act(images, proprio, INSTRUCTION, 1.0, torch.Generator().manual_seed(0))
    with torch.no_grad():
        scores = policy.log_prob(images, proprio, INSTRUCTION, acted.tokens).log_prob.numpy()
    np.testing.assert_allclose(scores, acted.log_prob, atol=tolerance)
    with policy.reference():
        base = policy.act(images, proprio, INSTRUCTION, 0.0).log_prob
    assert np.abs(base - policy.act(images, proprio, INSTRUCTION, 0.0).log_prob).max() > 1e-3


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_captured_graphs_decide_as_the_cpu_and_follow_the_adapter() -> None:
    """Batches that shrink and grow, two prompts, an adapter that changes under a captured graph."""
    here, there = adapted_policy(), adapted_policy()
    there.model.to("cuda")
    there = VLAPolicy(there.model, there.tokenizer, torch.device("cuda"))
    images, proprio = observations(4)
    for scale in (1.0, 0.5):
        for policy in (here, there):
            with torch.no_grad():
                for name, parameter in policy.model.named_parameters():
                    if "lora_B" in name:
                        parameter.mul_(scale)
        for n, instruction in (
            (2, INSTRUCTION),
            (4, INSTRUCTION),
            (2, INSTRUCTION),
            (4, "push the plate"),
            (4, INSTRUCTION),
        ):
            want, got = (
                policy.act(images[:n], proprio[:n], instruction, 1.0, torch.Generator().manual_seed(n))
                for policy in (here, there)
            )
            np.testing.assert_array_equal(got.tokens, want.tokens)
            np.testing.assert_allclose(got.log_prob, want.log_prob, atol=1e-3)


def test_a_base_that_has_acted_saves_the_same_bytes(tmp_path: Path) -> None:
    """Joined weights are views of one matrix, which a file must not show."""
    images, proprio = observations(1)
    policy = make_policy()
    policy.save_base(tmp_path / "before")
    policy.act(images, proprio, INSTRUCTION, 0.0)
    policy.save_base(tmp_path / "after")
    assert (tmp_path / "after/model.safetensors").read_bytes() == (tmp_path / "before/model.safetensors").read_bytes()


def test_a_policy_that_is_let_go_frees_its_weights_at_once() -> None:
    """Not when the garbage collector comes by: on a GPU the next 7B model would not fit beside it."""
    policy = adapted_policy()
    images, proprio = observations(2)
    acted = policy.act(images, proprio, INSTRUCTION, 1.0, torch.Generator().manual_seed(0))
    policy.log_prob(images, proprio, INSTRUCTION, acted.tokens).log_prob.sum().backward()
    weight = weakref.ref(policy.model.language_model.lm_head.weight)
    gc.disable()
    try:
        del policy
        assert weight() is None
    finally:
        gc.enable()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_captured_part_keeps_what_it_reads() -> None:
    class Doubled:
        def __init__(self) -> None:
            self.read, self.written = torch.full((2**20,), 3.0, device="cuda"), torch.zeros(2**20, device="cuda")

        def __call__(self) -> None:
            torch.mul(self.read, 2, out=self.written)

    part = Doubled()
    written = part.written
    (replay,) = capture([part], torch.cuda.graph_pool_handle())
    del part
    torch.full((2**20,), -1.0, device="cuda")  # would take the memory of `read`, were it free
    replay()
    assert (written == 6).all()
