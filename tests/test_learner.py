"""The learner on a small real policy: it moves probability the right way, carries its state, and refuses other data."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stages import learner as learner_module
from stages.algo.kl import kl_exact, kl_k3
from stages.algo.losses import policy_loss
from stages.batches import Batch
from stages.decisions import Decisions
from stages.errors import DivergedError, MismatchError, ParamsError, TgrpoError
from stages.learner import AHEAD, GIB, Learner
from stages.params import LoraParams, Params, UpdateParams
from stages.policy.memory import peak_bytes
from stages.policy.policy import TokenScores, VLAPolicy
from stages.reporting import Silent

INSTRUCTION = "pick up the butter and place it in the basket"


@pytest.fixture
def params(params: Params) -> Params:
    """With minibatches, whatever the profile takes."""
    return params.model_copy(update={"update": params.update.model_copy(update={"schedule": "minibatch"})})


def make_policy(params: Params, embedded: Path, **changes: Any) -> VLAPolicy:
    policy = VLAPolicy.load(embedded, "cpu", trainable=True, **changes)
    policy.add_lora(params.policy.lora, seed=1)
    return policy


def stir(policy: VLAPolicy) -> VLAPolicy:
    """Gives the adapter weights that matter, so that the policy is not its own reference."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in policy.trainable_parameters():
            if "lora_B" in name:
                parameter.copy_(0.02 * torch.randn(parameter.shape, generator=generator))
    return policy


def weights(policy: VLAPolicy) -> list[torch.Tensor]:
    return [parameter.detach().clone() for _, parameter in policy.trainable_parameters()]


def gradients(policy: VLAPolicy) -> list[torch.Tensor]:
    return [parameter.grad.clone() for _, parameter in policy.trainable_parameters() if parameter.grad is not None]


class Notes(Silent):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, text: str) -> None:
        self.lines.append(text)


def make_decisions(policy: VLAPolicy, advantage: np.ndarray, weight: np.ndarray | None = None) -> Decisions:
    rng = np.random.default_rng(0)
    b = len(advantage)
    size = policy.config.image_sizes[0]
    image = rng.integers(256, size=(b, size, size, 3), dtype=np.uint8)
    proprio = rng.normal(size=(b, 8)).astype(np.float32)
    acted = policy.act(image, proprio, INSTRUCTION, 1.0, torch.Generator().manual_seed(0))
    ones = np.ones(b, np.float32)
    step = np.arange(b) % max(b // 2, 1)  # two trajectories
    return Decisions(
        image=image,
        proprio=proprio,
        action_token=acted.tokens,
        log_prob=acted.log_prob,
        advantage=advantage.astype(np.float32),
        weight=ones if weight is None else weight,
        step=step,
        trajectory=np.cumsum(step == 0) - 1,
        group=np.zeros(b, np.int64),
        reward=ones,
        success=np.zeros(b, np.bool_),
        returns=np.ones(b),
        instruction=INSTRUCTION,
        temperature=1.0,
        hold_success=False,
    )


def log_probs(policy: VLAPolicy, decisions: Decisions) -> np.ndarray:
    with torch.no_grad():
        scores = policy.log_prob(decisions.image, decisions.proprio, INSTRUCTION, decisions.action_token, 1.0)
    return scores.log_prob.sum(-1).numpy()


def test_good_actions_become_likelier_and_bad_ones_less(params: Params, embedded: Path) -> None:
    policy = make_policy(params, embedded)
    advantage = np.array([1.0, -1.0] * 4)
    decisions = make_decisions(policy, advantage)
    before = log_probs(policy, decisions)
    update = params.update.model_copy(update={"minibatch": 8, "epochs": 4, "lr": 1e-3, "beta": 0.0})
    metrics = Learner(policy, update).update(decisions, seed=0)
    change = log_probs(policy, decisions) - before
    assert (change[advantage > 0] > 0).all() and (change[advantage < 0] < 0).all()
    assert metrics["updates"] == 4 and metrics["grad_norm"] > 0
    # The reference is the adapter switched off, so it did not move.
    with policy.reference():
        np.testing.assert_allclose(log_probs(policy, decisions), before, atol=1e-5)


def test_the_kl_holds_the_policy_back(params: Params, embedded: Path) -> None:
    distance = {}
    for beta in (0.0, 10.0):
        policy = make_policy(params, embedded)
        decisions = make_decisions(policy, np.array([1.0, -1.0] * 4))
        before = log_probs(policy, decisions)
        update = params.update.model_copy(
            update={"minibatch": 8, "epochs": 6, "lr": 1e-3, "beta": beta, "kl": "exact", "clip": 0.0}
        )
        Learner(policy, update).update(decisions, seed=0)
        distance[beta] = np.abs(log_probs(policy, decisions) - before).mean()
    assert distance[10.0] < 0.7 * distance[0.0]


def test_another_policy_than_the_one_that_sampled_is_refused(params: Params, embedded: Path) -> None:
    policy = make_policy(params, embedded)
    decisions = make_decisions(policy, np.array([1.0, -1.0]))
    stale = replace(decisions, log_prob=decisions.log_prob + 0.01)
    with pytest.raises(MismatchError, match="other log-probs than the rollout recorded"):
        Learner(policy, params.update).update(stale, seed=0)


def test_a_learner_that_was_stored_goes_on_like_one_that_was_not(
    params: Params, embedded: Path, tmp_path: Path
) -> None:
    update = params.update.model_copy(update={"minibatch": 4, "epochs": 1})
    unbroken = Learner(make_policy(params, embedded), update)
    first = make_decisions(unbroken.policy, np.array([1.0, -1.0] * 4))
    unbroken.update(first, seed=1)
    unbroken.policy.save_adapter(tmp_path / "adapter", str(embedded))
    state = unbroken.optimizer_state()

    restored = Learner(VLAPolicy.load(tmp_path / "adapter", "cpu", trainable=True), update)
    restored.load_optimizer_state(state)
    for learner in (unbroken, restored):
        learner.update(make_decisions(learner.policy, np.array([-1.0, 1.0] * 4)), seed=2)
    for (name, a), (other, b) in zip(
        unbroken.policy.trainable_parameters(), restored.policy.trainable_parameters(), strict=True
    ):
        assert name == other
        assert torch.equal(a, b), name
    with pytest.raises(MismatchError, match="does not train"):
        restored.load_optimizer_state({"nothing.weight/exp_avg": torch.zeros(1)})


def mixed(params: Params, policy: VLAPolicy) -> tuple[Decisions, UpdateParams]:
    """Seven decisions of unequal weight and advantage, and params under which every term of the loss counts."""
    rng = np.random.default_rng(3)
    decisions = make_decisions(policy, rng.normal(size=7), rng.uniform(0.2, 3.0, 7).astype(np.float32))
    # Ratios other than one, some of them clipped, all within what the check allows.
    decisions = replace(decisions, log_prob=decisions.log_prob + rng.uniform(-4e-4, 4e-4, (7, 7)).astype(np.float32))
    return decisions, params.update.model_copy(
        update={"minibatch": 7, "epochs": 1, "beta": 0.5, "kl": "exact", "clip": 2e-4, "max_grad_norm": 1e9}
    )


@pytest.mark.parametrize("kl", ["exact", "k3"])
@pytest.mark.parametrize("micro_batch", [1, 2, 3, 5])
def test_the_gradient_and_the_statistics_are_the_same_whatever_the_micro_batch(
    params: Params, embedded: Path, micro_batch: int, kl: str
) -> None:
    found = {}
    for size in (7, micro_batch):
        policy = stir(make_policy(params, embedded))
        decisions, update = mixed(params, policy)
        update = update.model_copy(update={"micro_batch": size, "kl": kl})
        found[size] = Learner(policy, update).update(decisions, seed=0), gradients(policy)
    (whole, whole_gradients), (parts, part_gradients) = found[7], found[micro_batch]
    assert whole["clip_fraction"] > 0.2 and whole["kl"] > 1e-4
    assert parts == pytest.approx(whole, rel=1e-4, abs=1e-6)
    assert len(part_gradients) == len(whole_gradients) == len(policy.trainable_parameters())
    for a, b in zip(part_gradients, whole_gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * b.abs().max().item())


def test_a_minibatch_in_one_part_is_computed_as_it_is(params: Params, embedded: Path) -> None:
    """To the last bit: the numbers of a run do not depend on whether its memory was measured."""
    policy = stir(make_policy(params, embedded))
    decisions, update = mixed(params, policy)
    Learner(policy, update.model_copy(update={"micro_batch": 0})).update(decisions, seed=5)
    found = gradients(policy)

    plain = stir(make_policy(params, embedded))
    rows = torch.randperm(7, generator=torch.Generator().manual_seed(5)).numpy()
    d = decisions.take(rows)
    with torch.no_grad(), plain.reference():  # in stored order, as the learner: a row's last bits depend on its place
        reference = plain.log_prob(
            decisions.image, decisions.proprio, INSTRUCTION, decisions.action_token
        ).log_probs_all[rows]
    scores = plain.log_prob(d.image, d.proprio, INSTRUCTION, d.action_token)
    loss, _ = policy_loss(
        scores.log_prob, *map(torch.from_numpy, (d.log_prob, d.advantage, d.weight)),
        kl_exact(scores.log_probs_all, reference), epsilon=2e-4, beta=0.5,
    )  # fmt: skip
    loss.backward()
    torch.nn.utils.clip_grad_norm_([parameter for _, parameter in plain.trainable_parameters()], 1e9)
    assert all(torch.equal(a, b) for a, b in zip(found, gradients(plain), strict=True))


def test_reference_scores_too_large_to_keep_are_computed_again(
    params: Params, embedded: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, calls = [], []
    for limit in (GIB, 0):
        monkeypatch.setattr(learner_module, "KEPT_REFERENCE", limit)
        policy = stir(make_policy(params, embedded))
        decisions, update = mixed(params, policy)
        learner = Learner(policy, update.model_copy(update={"micro_batch": 3, "epochs": 2}))
        count = spy(policy, monkeypatch)
        learner.update(decisions, seed=0)
        found.append(weights(policy))
        calls.append(sum(not learning for _, learning in count))
    # Once over 7 decisions (3 parts); or one part, to see how large they are, then 3 parts in each of 2 epochs. In the end 3
    # parts of the policy itself, and again of the reference.
    assert calls == [3 + 3, 1 + 6 + 3 + 3]
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


def spy(policy: VLAPolicy, monkeypatch: pytest.MonkeyPatch, holds: int = 10**9) -> list[tuple[int, bool]]:
    """Lists the decisions of every later forward pass and whether it learns; more than `holds` are out of memory."""
    passes: list[tuple[int, bool]] = []
    score = policy.log_prob

    def log_prob(images: Any, proprio: Any, instruction: str, tokens: Any, temperature: float) -> TokenScores:
        passes.append((len(tokens), torch.is_grad_enabled()))
        if len(tokens) > holds:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return score(images, proprio, instruction, tokens, temperature)

    monkeypatch.setattr(policy, "log_prob", log_prob)
    return passes


def test_the_micro_batch_that_is_found_keeps_within_the_limit(
    params: Params, embedded: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = {}
    everywhere = params.policy.lora.model_copy(update={"target_modules": "all-linear"})
    params = params.model_copy(update={"policy": params.policy.model_copy(update={"lora": everywhere})})
    for limit in (20e6, 10e6):
        policy = stir(make_policy(params, embedded))
        decisions = make_decisions(policy, np.linspace(-1, 1, 16))
        update = params.update.model_copy(
            update={"minibatch": 16, "epochs": 1, "micro_batch": 0, "memory_gb": limit / GIB}
        )
        learner, notes = Learner(policy, update), Notes()
        passes = spy(policy, monkeypatch)
        random = torch.get_rng_state()
        learner.update(decisions, seed=0, reporter=notes)
        assert torch.equal(torch.get_rng_state(), random)
        sizes[limit] = found = learner._micro_batch
        assert max(size for size, learning in passes if learning) <= found
        assert f"{found} decisions a pass" in notes.lines[0]
        reference = learner._references(decisions)
        for size, fits in ((found, True), (found + 1, False)):
            learner._micro_batch = size
            one_pass = partial(learner._accumulate, decisions, Batch(np.arange(size), 1.0), reference)
            peak = peak_bytes(one_pass, policy.device)
            assert (peak <= limit) == fits
    assert 2 <= sizes[10e6] < sizes[20e6] < 16


def test_measuring_leaves_gradients_and_weights_alone(params: Params, embedded: Path) -> None:
    policy = make_policy(params, embedded)
    decisions = make_decisions(policy, np.array([1.0]))  # fewer than are measured
    learner = Learner(policy, params.update)
    before = weights(policy)
    marks = [torch.full_like(parameter, 3.0) for parameter in before]
    for (_, parameter), mark in zip(policy.trainable_parameters(), marks, strict=True):
        parameter.grad = mark
    assert learner._fitting_micro_batch(decisions, Silent()) == params.update.minibatch
    for (_, parameter), mark, weight in zip(policy.trainable_parameters(), marks, before, strict=True):
        assert parameter.grad is mark and (mark == 3.0).all() and torch.equal(parameter, weight)


def test_too_little_memory_for_one_decision_is_said_before_anything_moves(params: Params, embedded: Path) -> None:
    policy = make_policy(params, embedded)
    decisions = make_decisions(policy, np.array([1.0, -1.0]))
    before = weights(policy)
    update = params.update.model_copy(update={"memory_gb": 1e-4})
    with pytest.raises(
        TgrpoError, match=r"one decision takes 0\.00\d+ GiB .* of 0\.0001 allowed; .*gradient_checkpointing"
    ):
        Learner(policy, update).update(decisions, seed=0)
    assert all(torch.equal(a, b) for a, b in zip(weights(policy), before, strict=True))


def test_the_free_memory_is_the_limit_when_none_is_given(
    params: Params, embedded: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = make_policy(params, embedded)
    learner = Learner(policy, params.update.model_copy(update={"memory_gb": None}))
    monkeypatch.setattr(learner_module, "available_bytes", lambda: 10 * 2**20)
    moments = 8 * sum(parameter.numel() for _, parameter in policy.trainable_parameters())
    assert 0 < learner._memory_limit() == int(0.9 * (10 * 2**20 - moments))
    learner.update(make_decisions(policy, np.array([1.0, -1.0])), seed=0)
    assert learner._memory_limit() == int(0.9 * 10 * 2**20)  # AdamW has its moments now


def test_a_device_out_of_memory_halves_the_micro_batch_aloud(
    params: Params, embedded: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for holds, micro_batch in ((10**9, 1), (1, 6)):
        policy = stir(make_policy(params, embedded))
        decisions, update = mixed(params, policy)
        notes = Notes()
        spy(policy, monkeypatch, holds)
        Learner(policy, update.model_copy(update={"micro_batch": micro_batch})).update(decisions, 0, notes)
        found.append(gradients(policy))
    assert [line.split(" decisions a pass")[0].split()[-1] for line in notes.lines] == ["3", "1"]
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))

    spy(policy, monkeypatch, holds=0)
    with pytest.raises(
        TgrpoError, match=r"no memory left to learn from one decision; set policy\.gradient_checkpointing"
    ):
        Learner(policy, update).update(decisions, seed=0)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("wrong", ["nothing", "adapter", "images", "temperature"])
def test_what_was_not_sampled_so_stops_before_any_weight_moves(
    params: Params, embedded: Path, wrong: str, dtype: str
) -> None:
    policy = stir(make_policy(params, embedded, dtype=dtype))
    decisions = make_decisions(policy, np.array([1.0, -1.0] * 4))
    if wrong == "adapter":
        with torch.no_grad():
            for _, parameter in policy.trainable_parameters():
                parameter.mul_(2.0)
    elif wrong == "images":
        decisions = replace(decisions, image=np.zeros_like(decisions.image))
    elif wrong == "temperature":
        decisions = replace(decisions, temperature=1.5)
    before = weights(policy)
    learner = Learner(policy, params.update.model_copy(update={"minibatch": 8, "epochs": 1}))
    if wrong == "nothing":
        learner.update(decisions, seed=0)
        assert not all(torch.equal(a, b) for a, b in zip(weights(policy), before, strict=True))
        return
    with pytest.raises(MismatchError, match=r"other log-probs than the rollout recorded.*policy\.center_crop"):
        learner.update(decisions, seed=0)
    assert all(torch.equal(a, b) for a, b in zip(weights(policy), before, strict=True))


def test_more_than_a_small_minibatch_is_checked(params: Params, embedded: Path) -> None:
    """One decision out of many is off, and it is not in the first minibatch of two."""
    policy = make_policy(params, embedded)
    decisions = make_decisions(policy, np.tile([1.0, -1.0], AHEAD // 2))
    first = torch.randperm(AHEAD, generator=torch.Generator().manual_seed(0))[:2]
    recorded = decisions.log_prob.copy()
    recorded[next(row for row in range(AHEAD) if row not in first)] += 0.01
    learner = Learner(policy, params.update.model_copy(update={"minibatch": 2, "micro_batch": 2}))
    before = weights(policy)
    with pytest.raises(MismatchError, match=f"over {AHEAD} decisions"):
        learner.update(replace(decisions, log_prob=recorded), seed=0)
    assert all(torch.equal(a, b) for a, b in zip(weights(policy), before, strict=True))


def test_the_statistics_of_an_update_are_those_of_its_decisions(params: Params, embedded: Path) -> None:
    policy = stir(make_policy(params, embedded))
    decisions = make_decisions(policy, np.array([1.0, -1.0] * 4))
    with torch.no_grad():
        first = policy.log_prob(decisions.image, decisions.proprio, INSTRUCTION, decisions.action_token)
    update = params.update.model_copy(update={"minibatch": 8, "epochs": 2, "lr": 1e-3, "beta": 0.1, "kl": "k3"})
    found = Learner(policy, update).update(decisions, seed=0)
    with torch.no_grad():
        last = policy.log_prob(decisions.image, decisions.proprio, INSTRUCTION, decisions.action_token)
        with policy.reference():
            base = policy.log_prob(decisions.image, decisions.proprio, INSTRUCTION, decisions.action_token)
    assert found["entropy_end"] == pytest.approx(last.entropy.mean().item(), rel=1e-4)
    assert found["kl_end"] == pytest.approx(kl_exact(last.log_probs_all, base.log_probs_all).mean().item(), rel=1e-3)
    assert found["kl_end"] > 0 and abs(found["entropy_end"] - first.entropy.mean().item()) > 1e-3
    # The first pass has ratios of 1, the second those after one step: the median lies at 1, the spread on both sides.
    assert found["ratio_p05"] < found["ratio_p50"] == pytest.approx(1, abs=1e-3)
    assert found["ratio_p50"] < found["ratio_p95"] <= found["ratio_max"]
    assert found["updates"] == 2 and {"value_loss", "preference_accuracy"}.isdisjoint(found)


@pytest.mark.parametrize("schedule", ["step", "minibatch", "group"])
def test_every_schedule_moves_probability_the_right_way(params: Params, embedded: Path, schedule: str) -> None:
    policy = make_policy(params, embedded)
    advantage = np.array([1.0, -1.0] * 4)
    decisions = make_decisions(policy, advantage)
    before = log_probs(policy, decisions)
    update = params.update.model_copy(
        update={"schedule": schedule, "minibatch": 4, "epochs": 4, "lr": 1e-3, "beta": 0.0}
    )
    metrics = Learner(policy, update).update(decisions, seed=0)
    change = log_probs(policy, decisions) - before
    assert (change[advantage > 0] > 0).all() and (change[advantage < 0] < 0).all()
    # 4 passes of 4 time steps, of 2 minibatches of 4, or of everything at once.
    assert metrics["updates"] == {"step": 16, "minibatch": 8, "group": 4}[schedule]


@pytest.mark.parametrize("how", ["advantage", "weights"])
def test_numbers_that_are_not_finite_end_the_update_before_a_step(params: Params, embedded: Path, how: str) -> None:
    policy = make_policy(params, embedded)
    decisions = make_decisions(policy, np.array([1.0, -1.0]))
    update = params.update.model_copy(update={"schedule": "group", "beta": 0.0})
    if how == "advantage":
        decisions = replace(decisions, advantage=np.array([np.nan, 1.0], np.float32))
    else:  # a finite loss with a gradient that is not
        decisions = replace(decisions, weight=np.full(2, 1e38, np.float32), log_prob=decisions.log_prob)
    before = weights(policy)
    with pytest.raises(
        DivergedError, match=r"became (nan|inf) after 0 updates; the last checkpoint is untouched.*update\.lr"
    ):
        Learner(policy, update).update(decisions, seed=0)
    assert all(torch.equal(a, b) for a, b in zip(weights(policy), before, strict=True))


def test_data_of_another_policy_are_taken_up_to_the_limit_and_no_further(params: Params, embedded: Path) -> None:
    policy = stir(make_policy(params, embedded))
    decisions = make_decisions(policy, np.array([1.0, -1.0] * 4))
    sampled = torch.from_numpy(decisions.log_prob)
    with torch.no_grad():  # the policy that is updated has moved on
        for name, parameter in policy.trainable_parameters():
            if "lora_B" in name:
                parameter.mul_(2.0)
        now = policy.log_prob(decisions.image, decisions.proprio, INSTRUCTION, decisions.action_token).log_prob
    distance = kl_k3(sampled, now).mean().item()
    assert distance > 1e-4
    before = weights(policy)
    for limit in (0.0, 0.9 * distance, 1.1 * distance):
        learner = Learner(policy, params.update.model_copy(update={"max_off_policy_kl": limit, "epochs": 1}))
        if limit > distance:
            assert learner.update(decisions, seed=0)["approx_kl"] == pytest.approx(distance, rel=1e-3)
            assert not all(torch.equal(a, b) for a, b in zip(weights(policy), before, strict=True))
            continue
        with pytest.raises(MismatchError) as refused:
            learner.update(decisions, seed=0)
        assert all(torch.equal(a, b) for a, b in zip(weights(policy), before, strict=True))
        if limit:
            assert f"{distance:.3g} nats a token from this one; update.max_off_policy_kl allows {limit:g}" in str(
                refused.value
            )


def test_one_far_group_among_near_ones_is_refused(params: Params, embedded: Path) -> None:
    policy = make_policy(params, embedded)
    decisions = make_decisions(policy, np.array([1.0, -1.0] * 4))
    far = decisions.log_prob.copy()
    far[6:] -= 1.0  # e - 2 = 0.72 nats a token in the second group, 0.18 over both
    decisions = replace(decisions, log_prob=far, group=np.repeat([0, 1], [6, 2]))
    learner = Learner(policy, params.update.model_copy(update={"max_off_policy_kl": 0.5}))
    with pytest.raises(MismatchError, match=r"group 2 of the 2 in use .* 0\.718 nats a token"):
        learner.update(decisions, seed=0)


def test_a_policy_in_float16_is_refused(params: Params, embedded: Path) -> None:
    policy = make_policy(params, embedded)
    policy.model.half()
    with pytest.raises(ParamsError, match=r"loaded in torch\.float16.*policy\.dtype=bfloat16"):
        Learner(policy, params.update)


def test_an_adapter_with_dropout_is_refused(params: Params, embedded: Path) -> None:
    policy = VLAPolicy.load(embedded, "cpu", trainable=True)
    policy.add_lora(LoraParams(rank=2, alpha=2, dropout=0.1, target_modules="all-linear"), seed=1)
    with pytest.raises(ParamsError, match=r"dropout 0\.1"):
        Learner(policy, params.update)
