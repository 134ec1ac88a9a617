"""The learner on a small real policy: it moves probability the right way, carries its state, and refuses other data."""

from pathlib import Path

import numpy as np
import pytest
import torch

from stages.errors import MismatchError
from stages.params import Params
from stages.policy.policy import VLAPolicy
from stages.update import Decisions, Learner

INSTRUCTION = "pick up the butter and place it in the basket"


def make_policy(params: Params, embedded: Path) -> VLAPolicy:
    policy = VLAPolicy.load(embedded, "cpu", trainable=True)
    policy.add_lora(params.policy.lora, seed=1)
    return policy


def make_decisions(policy: VLAPolicy, advantage: np.ndarray, weight: np.ndarray | None = None) -> Decisions:
    rng = np.random.default_rng(0)
    b = len(advantage)
    size = policy.config.image_sizes[0]
    image = rng.integers(256, size=(b, size, size, 3), dtype=np.uint8)
    proprio = rng.normal(size=(b, 8)).astype(np.float32)
    acted = policy.act(image, proprio, INSTRUCTION, 1.0, torch.Generator().manual_seed(0))
    ones = np.ones(b, np.float32)
    return Decisions(
        image, proprio, acted.tokens, acted.log_prob, advantage.astype(np.float32),
        ones if weight is None else weight, INSTRUCTION, 1.0,
    )  # fmt: skip


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
    stale = Decisions(**{**vars(decisions), "log_prob": decisions.log_prob + 0.01})
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
