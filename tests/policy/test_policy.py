import numpy as np
import pytest
import torch

from stages.errors import ArtifactError, MismatchError, ParamsError
from stages.policy.policy import VLAPolicy
from tests.policy.tiny import ARCHITECTURE, INSTRUCTION, LORA, NORM_STATS, make_policy, observations


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def perturb_adapter(policy: VLAPolicy) -> None:
    """Moves the adapter off zero, so that it changes what the policy does."""
    with torch.no_grad():
        for index, (_, parameter) in enumerate(policy.trainable_parameters()):
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator(index)))


@pytest.fixture
def policy() -> VLAPolicy:
    return make_policy()


@pytest.fixture
def adapted() -> VLAPolicy:
    policy = make_policy()
    policy.add_lora(LORA, seed=1)
    perturb_adapter(policy)
    return policy


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("which", ["policy", "adapted"])
def test_scores_of_sampled_tokens_equal_the_recorded_ones(
    which: str, temperature: float, request: pytest.FixtureRequest
) -> None:
    policy = request.getfixturevalue(which)
    images, proprio = observations(5)
    acted = policy.act(images, proprio, INSTRUCTION, temperature, generator())
    scores = policy.log_prob(images, proprio, INSTRUCTION, acted.tokens, temperature)
    np.testing.assert_allclose(scores.log_prob.detach().numpy(), acted.log_prob, atol=1e-5)
    np.testing.assert_allclose(scores.entropy.detach().numpy(), acted.entropy, atol=1e-5)
    np.testing.assert_allclose(scores.log_probs_all.exp().sum(-1).detach().numpy(), 1.0, atol=1e-5)


def test_given_draws_decide_as_the_generator_that_draws_them(policy: VLAPolicy) -> None:
    images, proprio = observations(3)
    draws = torch.rand(3, 7, dtype=torch.float64, generator=generator(4))
    given = policy.act(images, proprio, INSTRUCTION, 1.0, uniform=draws)
    np.testing.assert_array_equal(given.tokens, policy.act(images, proprio, INSTRUCTION, 1.0, generator(4)).tokens)
    # A row depends on its own draws alone, and greedy acting on none.
    other = policy.act(images, proprio, INSTRUCTION, 1.0, uniform=torch.cat([draws[:1], draws[[2, 1]]]))
    np.testing.assert_array_equal(other.tokens[0], given.tokens[0])
    assert (other.tokens[1:] != given.tokens[1:]).any()
    greedy = policy.act(images, proprio, INSTRUCTION, 0.0, uniform=draws)
    np.testing.assert_array_equal(greedy.tokens, policy.act(images, proprio, INSTRUCTION, 0.0).tokens)


def test_cached_decoding_equals_the_plain_forward(policy: VLAPolicy) -> None:
    """Greedy tokens, found again one position at a time by the whole model's logits without a cache."""
    images, proprio = observations(2)
    acted = policy.act(images, proprio, INSTRUCTION, temperature=0.0)
    pixels = policy.transform.normalize(policy.prepare(images).pixels)
    ids = policy.prompt(INSTRUCTION).expand(2, -1)
    with torch.no_grad():
        for position in range(7):
            logits = policy.model(ids, pixels, torch.from_numpy(proprio)).logits[:, -1, 400 - 256 : 400]
            token = logits.argmax(-1) + 400 - 256
            np.testing.assert_array_equal(token.numpy(), acted.tokens[:, position])
            ids = torch.cat([ids, token[:, None]], dim=1)


def test_shapes_and_ranges(policy: VLAPolicy) -> None:
    images, proprio = observations(3)
    acted = policy.act(images, proprio, INSTRUCTION, 1.0, generator())
    assert acted.tokens.shape == acted.action.shape == acted.log_prob.shape == acted.entropy.shape == (3, 7)
    assert (acted.tokens.dtype, acted.action.dtype) == (np.int64, np.float64)
    assert (acted.log_prob.dtype, acted.entropy.dtype) == (np.float32, np.float32)
    assert acted.tokens.min() >= 400 - 256 and acted.tokens.max() < 400
    assert set(acted.action[:, 6]) <= {-1.0, 1.0}
    assert (acted.entropy > 0).all() and (acted.entropy <= np.log(256) + 1e-5).all()


def test_same_generator_state_same_tokens(policy: VLAPolicy) -> None:
    images, proprio = observations(3)
    first, again, other = (policy.act(images, proprio, INSTRUCTION, 1.0, generator(seed)).tokens for seed in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_a_batch_equals_its_rows(policy: VLAPolicy) -> None:
    images, proprio = observations(4)
    batch = policy.act(images, proprio, INSTRUCTION, temperature=0.0)
    for row in range(4):
        one = policy.act(images[row : row + 1], proprio[row : row + 1], INSTRUCTION, temperature=0.0)
        np.testing.assert_array_equal(one.tokens[0], batch.tokens[row])
        np.testing.assert_allclose(one.log_prob[0], batch.log_prob[row], atol=1e-5)


def test_sampling_follows_the_distribution(policy: VLAPolicy) -> None:
    """4000 draws of the first token: the mean log-prob is minus the entropy, within 4 standard errors."""
    images, proprio = observations(1)
    acted = policy.act(
        np.repeat(images, 4000, 0), np.repeat(proprio, 4000, 0), INSTRUCTION, temperature=0.5, generator=generator()
    )
    first = acted.log_prob[:, 0]
    assert abs(first.mean() + acted.entropy[0, 0]) < 4 * first.std() / np.sqrt(4000)
    counts = np.bincount(acted.tokens[:, 0] - (400 - 256), minlength=256)
    every = policy.log_prob(images, proprio, INSTRUCTION, acted.tokens[:1], 0.5).log_probs_all[0, 0].exp()
    expected = 4000 * every.detach().numpy()
    # Pearson's statistic has mean 255 and deviation about 23.
    assert ((counts - expected) ** 2 / expected).sum() < 255 + 6 * 23


def test_what_is_seen_and_felt_matters(policy: VLAPolicy) -> None:
    images, proprio = observations(2)
    base = policy.log_prob(images[:1], proprio[:1], INSTRUCTION, np.full((1, 7), 300)).log_probs_all
    seen = policy.log_prob(images[1:], proprio[:1], INSTRUCTION, np.full((1, 7), 300)).log_probs_all
    felt = policy.log_prob(images[:1], proprio[1:], INSTRUCTION, np.full((1, 7), 300)).log_probs_all
    told = policy.log_prob(images[:1], proprio[:1], "push the plate", np.full((1, 7), 300)).log_probs_all
    assert all((base - changed).abs().max() > 1e-4 for changed in (seen, felt, told))


def test_tokens_see_only_the_tokens_before_them(policy: VLAPolicy) -> None:
    images, proprio = observations(1)
    tokens = np.full((1, 7), 300)
    before = policy.log_prob(images, proprio, INSTRUCTION, tokens).log_probs_all
    tokens[0, 3] = 200
    after = policy.log_prob(images, proprio, INSTRUCTION, tokens).log_probs_all
    torch.testing.assert_close(before[:, :4], after[:, :4])
    assert (before[:, 4:] - after[:, 4:]).abs().amin(-1).amax() > 0


def test_same_seed_same_weights() -> None:
    first, again, other = make_policy(0), make_policy(0), make_policy(1)
    for policy in (first, again, other):
        policy.add_lora(LORA, seed=5)
    name = "language_model.model.layers.0.self_attn.q_proj.lora_A.default.weight"
    for key, tensor in first.model.state_dict().items():
        torch.testing.assert_close(tensor, again.model.state_dict()[key], rtol=0, atol=0)
    assert not torch.equal(first.model.projector.fc1.weight, other.model.projector.fc1.weight)
    torch.testing.assert_close(first.model.state_dict()[name], other.model.state_dict()[name], rtol=0, atol=0)


def test_making_a_policy_leaves_torchs_random_state_alone() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    make_policy(3).add_lora(LORA, seed=4)
    assert torch.equal(before, torch.get_rng_state())


def test_a_fresh_adapter_changes_nothing_and_only_it_trains(policy: VLAPolicy) -> None:
    images, proprio = observations(2)
    tokens = np.full((2, 7), 300)
    before = policy.log_prob(images, proprio, INSTRUCTION, tokens).log_prob
    policy.add_lora(LORA, seed=0)
    torch.testing.assert_close(policy.log_prob(images, proprio, INSTRUCTION, tokens).log_prob, before)
    names = [name for name, _ in policy.trainable_parameters()]
    assert names and all("lora_" in name for name in names)
    # The adapter is on the Llama, both towers and both projectors.
    for part in ("language_model", "featurizer", "fused_featurizer", "proprio_projector", "projector"):
        assert any(f"{part}." in name for name in names)
    assert not any("lm_head" in name for name in names)


def test_reference_is_the_base_and_leaves_the_policy_as_it_was(adapted: VLAPolicy) -> None:
    images, proprio = observations(2)
    tokens = np.full((2, 7), 300)
    base = make_policy().log_prob(images, proprio, INSTRUCTION, tokens).log_prob
    trained = [name for name, _ in adapted.trainable_parameters()]
    mine = adapted.log_prob(images, proprio, INSTRUCTION, tokens).log_prob
    with adapted.reference(), torch.no_grad():
        torch.testing.assert_close(adapted.log_prob(images, proprio, INSTRUCTION, tokens).log_prob, base)
        np.testing.assert_array_equal(
            adapted.act(images, proprio, INSTRUCTION, 0.0).tokens,
            make_policy().act(images, proprio, INSTRUCTION, 0.0).tokens,
        )
    torch.testing.assert_close(adapted.log_prob(images, proprio, INSTRUCTION, tokens).log_prob, mine)
    assert (mine - base).abs().max() > 1e-3
    assert [name for name, _ in adapted.trainable_parameters()] == trained


def test_acting_follows_every_change_of_the_adapter(adapted: VLAPolicy) -> None:
    images, proprio = observations(3)
    for _ in range(2):
        acted = adapted.act(images, proprio, INSTRUCTION, 1.0, generator())
        scores = adapted.log_prob(images, proprio, INSTRUCTION, acted.tokens)
        np.testing.assert_allclose(scores.log_prob.detach().numpy(), acted.log_prob, atol=1e-5)
        optimizer = torch.optim.AdamW([parameter for _, parameter in adapted.trainable_parameters()], lr=0.1)
        (-scores.log_prob.mean()).backward()
        optimizer.step()


def test_gradients_reach_every_adapter_weight(adapted: VLAPolicy) -> None:
    images, proprio = observations(2)
    adapted.log_prob(images, proprio, INSTRUCTION, np.full((2, 7), 300)).log_prob.sum().backward()
    silent = [
        name for name, parameter in adapted.trainable_parameters() if parameter.grad is None or not parameter.grad.any()
    ]
    assert silent == []


def test_the_reference_of_a_policy_without_adapter_is_refused(policy: VLAPolicy) -> None:
    with pytest.raises(MismatchError, match="no adapter"), policy.reference():
        pass


def test_a_second_adapter_is_refused(adapted: VLAPolicy) -> None:
    with pytest.raises(MismatchError, match="already"):
        adapted.add_lora(LORA, seed=0)


def test_images_of_another_size_are_refused(policy: VLAPolicy) -> None:
    with pytest.raises(MismatchError, match=r"set sim\.image_size to 32"):
        policy.act(np.zeros((1, 64, 64, 3), np.uint8), np.zeros((1, 8), np.float32), INSTRUCTION, 0.0)


def test_statistics_without_the_suite_are_refused(policy: VLAPolicy) -> None:
    with pytest.raises(ArtifactError, match="libero_goal"):
        VLAPolicy(policy.model, policy.tokenizer, policy.device, suite="libero_goal")


@pytest.mark.parametrize("device", ["gpu", "meta", "cuda:99"])
def test_a_device_that_is_not_there_is_refused(device: str) -> None:
    with pytest.raises(ParamsError, match=rf"policy\.device = '{device}'"):
        VLAPolicy.new(ARCHITECTURE, 32, NORM_STATS, 0, device)


def test_encode_then_decode_is_the_action_up_to_a_bin(policy: VLAPolicy) -> None:
    action = np.array([[0.25, -0.5, 0.1, 0.0, 0.05, -0.1, -1.0]])
    stats = NORM_STATS["libero_object"]["action"]
    half_bin = (np.array(stats["q99"]) - np.array(stats["q01"]))[:6] / 2 / 255
    back = policy.decode_tokens(policy.encode_actions(action))
    assert (np.abs(back - action)[:, :6] <= half_bin + 1e-9).all()
    assert back[0, 6] == -1.0


def test_learns_an_action_from_a_colour(policy: VLAPolicy) -> None:
    """Behaviour cloning of 4 colours -> 4 actions, on noisy images."""
    rng = np.random.default_rng(0)
    colours = np.array([[200, 40, 40], [40, 200, 40], [40, 40, 200], [200, 200, 40]])
    actions = np.column_stack(
        [np.linspace(-0.4, 0.4, 4), [0.5, -0.5, 0.0, 0.9], np.zeros((4, 4)), [1.0, -1.0, 1.0, -1.0]]
    )

    def batch(n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        which = rng.integers(0, 4, n)
        noise = rng.integers(-30, 30, (n, 32, 32, 3))
        return (
            (colours[which][:, None, None] + noise).astype(np.uint8),
            rng.uniform(-1, 1, (n, 8)).astype(np.float32),
            which,
        )

    optimizer = torch.optim.AdamW([parameter for _, parameter in policy.trainable_parameters()], lr=3e-3)
    for _ in range(100):
        images, proprio, which = batch(32)
        loss = policy.loss(images, proprio, INSTRUCTION, actions[which])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.1  # from log(256) = 5.5
    images, proprio, which = batch(64)
    greedy = policy.act(images, proprio, INSTRUCTION, temperature=0.0)
    assert (greedy.tokens == policy.encode_actions(actions[which])).all(axis=1).mean() > 0.95


@pytest.mark.parametrize("targets", ["nothing", ["nothing"], "*", ["norm1"]])
def test_target_modules_that_take_no_adapter_are_refused(policy: VLAPolicy, targets: str | list[str]) -> None:
    with pytest.raises(ParamsError, match=r"policy\.lora\.target_modules = .*expected all-linear") as error:
        policy.add_lora(LORA.model_copy(update={"target_modules": targets}), seed=0)
    assert "\n" not in str(error.value)
    assert policy.trainable_parameters() and not policy.has_adapter
