"""PPO's advantages over the decisions of an update: how trajectories end, and what the critic is fitted to."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from stages.actor_critic import ActorCritic, advantages
from stages.decisions import Decisions
from stages.errors import DivergedError, MismatchError, ParamsError
from stages.params import Params
from stages.policy.critic import Critic


def decisions(*lengths: int, success: tuple[bool, ...] | None = None, hold: bool = False) -> Decisions:
    """Trajectories with reward 1, 2, 3, ..; `success`: which end in it."""
    n = sum(lengths)
    step = np.concatenate([np.arange(length) for length in lengths])
    ends = np.cumsum(lengths) - 1
    succeeded = np.zeros(n, np.bool_)
    succeeded[ends] = success or [False] * len(lengths)
    return Decisions(
        image=np.zeros((n, 2, 2, 3), np.uint8),
        proprio=np.zeros((n, 8), np.float32),
        action_token=np.zeros((n, 7), np.int64),
        log_prob=np.zeros((n, 7), np.float32),
        advantage=np.zeros(n, np.float32),
        weight=np.full(n, 9.0, np.float32),
        step=step,
        trajectory=np.repeat(np.arange(len(lengths)), lengths),
        group=np.zeros(n, np.int64),
        reward=(step + 1).astype(np.float32),
        success=succeeded,
        returns=np.zeros(n),
        instruction="",
        temperature=1.0,
        hold_success=hold,
    )


def test_what_was_cut_off_goes_on_at_the_value_of_the_last_thing_seen() -> None:
    # gamma 0.5, lambda 0: rewards 1, 2, 3 and values 10, 20, 30. The last decision stands for what comes after the second:
    # 1 + 10 - 10 = 1 and 2 + 15 - 20 = -3.
    kept, found = advantages(decisions(3), np.array([10.0, 20.0, 30.0]), 0.5, 0.0)
    assert kept.tolist() == [0, 1]
    np.testing.assert_allclose(found, [1.0, -3.0])


def test_a_success_is_over_or_pays_for_ever() -> None:
    # gamma 0.5: the last reward, 2, then nothing; or 2 + 0.5 * (2 / (1 - 0.5)) = 4. Less the value 20.
    value = np.array([10.0, 20.0])
    for hold, worth in ((False, 2.0), (True, 4.0)):
        kept, found = advantages(decisions(2, success=(True,), hold=hold), value, 0.5, 0.0)
        assert kept.tolist() == [0, 1]
        np.testing.assert_allclose(found, [1.0 + 10 - 10, worth - 20])


def test_trajectories_do_not_leak_into_each_other() -> None:
    both = decisions(3, 4, success=(True, False), hold=True)
    value = np.arange(7.0)
    kept, found = advantages(both, value, 0.9, 0.95)
    first = advantages(decisions(3, success=(True,), hold=True), value[:3], 0.9, 0.95)
    second = advantages(decisions(4), value[3:], 0.9, 0.95)
    assert kept.tolist() == [*first[0], *(3 + second[0])]
    np.testing.assert_allclose(found, np.concatenate([first[1], second[1]]))


def make(params: Params, **changes: Any) -> ActorCritic:
    return ActorCritic(Critic(8, seed=1), params.update.model_copy(update={"algo": "ppo", **changes}))


def states(n: int) -> torch.Tensor:
    return torch.randn(n, 8, generator=torch.Generator().manual_seed(0))


def test_decisions_are_weighed_normalised_and_each_with_the_same_say(params: Params) -> None:
    found = make(params).weigh(decisions(6, 5, success=(True, False)), states(11))
    assert len(found) == 6 + 4 and found.trajectory.tolist() == [0] * 6 + [1] * 4
    assert found.advantage.mean() == pytest.approx(0, abs=1e-6) and found.advantage.std() == pytest.approx(1, rel=1e-5)
    assert (found.weight == 1).all()


def test_a_new_critic_takes_the_mean_reward_for_ever_as_its_first_guess(params: Params) -> None:
    """A constant guess that is right leaves only what differs: rewards of 1 for ever have no advantage over a value of 100."""
    even = replace(decisions(9, 7), reward=np.ones(16, np.float32))
    assert (make(params, gamma=0.99).weigh(even, states(16)).advantage == 0).all()


def test_the_critic_learns_to_foresee(params: Params) -> None:
    ours = make(params)
    sampled, seen = decisions(8, 8, 8, success=(True, False, True), hold=True), states(24)
    explained, losses = [], []
    for _ in range(12):
        weighed = ours.weigh(sampled, seen)
        kept = seen[torch.from_numpy(np.delete(np.arange(24), 15))]  # but the last of the one that was cut off
        explained.append(ours.explained_variance)
        for _ in range(20):
            ours.forget_gradients()
            loss = ours.loss(kept, np.arange(len(weighed)))
            loss.backward()
            ours.step()
        losses.append(loss.item())
    assert explained[0] == pytest.approx(0) and explained[-1] > 0.8
    assert losses[-1] < 0.5 * losses[0]


def test_it_goes_on_from_what_was_stored_as_if_nothing_had_happened(params: Params) -> None:
    def learn(ours: ActorCritic, times: int) -> ActorCritic:
        for _ in range(times):
            ours.weigh(decisions(4, 4, success=(True, True)), states(8))
            ours.forget_gradients()
            ours.loss(states(8), np.arange(8)).backward()
            ours.step()
        return ours

    unbroken = learn(make(params), 2)
    restored = make(params)
    restored.restore(unbroken.stored())
    a, b = learn(unbroken, 2).stored(), learn(restored, 2).stored()
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
    assert any(name.startswith("optimizer/") for name in a)


def test_a_critic_of_another_policy_is_refused(params: Params) -> None:
    other = ActorCritic(Critic(9, seed=1), params.update)
    with pytest.raises(MismatchError, match=r"critic was made for another policy.*critic\.safetensors"):
        make(params).restore(other.stored())


def test_a_held_success_without_discount_is_refused(params: Params) -> None:
    with pytest.raises(ParamsError, match=r"update\.gamma = 1 with advantage\.hold_success"):
        make(params, gamma=1.0).weigh(decisions(3, success=(True,), hold=True), states(3))


def test_trajectories_of_one_decision_that_were_cut_off_teach_nothing(params: Params) -> None:
    with pytest.raises(MismatchError, match=r"cut off after one decision.*rollout\.max_env_steps"):
        make(params).weigh(decisions(1, 1), states(2))


def test_a_critic_that_is_no_number_any_more_stops(params: Params) -> None:
    ours = make(params)
    ours.weigh(decisions(4, 4), states(8))
    ours.forget_gradients()
    (ours.loss(states(6) * torch.inf, np.arange(6))).backward()
    with pytest.raises(DivergedError, match=r"critic's gradient became nan.*update\.ppo\.value_lr"):
        ours.step()
