"""PPO's value head: it starts at a constant, follows the scale of the returns without moving a value, and learns."""

import pytest
import torch

from stages.policy.critic import Critic


def states(n: int = 64) -> torch.Tensor:
    return torch.randn(n, 8, generator=torch.Generator().manual_seed(0))


def trained(critic: Critic, state: torch.Tensor, returns: torch.Tensor, steps: int = 200) -> Critic:
    critic.follow(returns)
    optimizer = torch.optim.Adam(critic.parameters(), lr=1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        ((critic(state) - critic.normalised(returns)) ** 2).mean().backward()
        optimizer.step()
    return critic


def test_a_new_critic_answers_with_one_constant_and_then_with_the_mean_of_what_it_saw() -> None:
    critic = Critic(8, seed=1)
    critic.start_at(700.0)
    assert critic.is_new and (critic.value(states()) == 700).all()
    critic.follow(torch.tensor([100.0, 300.0]))
    assert not critic.is_new and (critic.value(states()) == 200).all() and critic.std.item() == 100


def test_returns_of_over_a_thousand_are_learnt() -> None:
    state = states()
    returns = 1200 + 400 * torch.tanh(state[:, 0]).double()
    critic = trained(Critic(8, seed=1), state, returns)
    assert (critic.value(state) - returns).std() < 0.1 * returns.std()


def test_following_the_scale_of_the_returns_leaves_every_value_where_it_was() -> None:
    state = states()
    critic = trained(Critic(8, seed=1), state, 1200 + 400 * state[:, 0].double())
    before = critic.value(state)
    critic.follow(50 + 10 * state[:, 1].double())
    assert critic.mean < 1000 and (before - before.mean()).abs().max() > 100
    torch.testing.assert_close(critic.value(state), before, rtol=1e-5, atol=1e-2)


def test_mean_and_deviation_reach_those_of_returns_that_stay() -> None:
    critic = Critic(8, seed=1)
    for returns in ([0.0, 10.0], *([[90.0, 110.0]] * 60)):
        critic.follow(torch.tensor(returns))
    assert critic.mean.item() == pytest.approx(100, abs=1) and critic.std.item() == pytest.approx(10, abs=1)


def test_equal_returns_give_no_nan() -> None:
    critic = Critic(8, seed=1)
    critic.follow(torch.full((4,), 16.0))
    assert torch.isfinite(critic.value(states())).all()
    torch.testing.assert_close(critic.normalised(torch.full((4,), 16.0)), torch.zeros(4))


def test_it_is_stored_and_restored_and_its_seed_decides() -> None:
    critic = trained(Critic(8, seed=1), states(), states()[:, 0].double(), steps=3)
    other = Critic(8, seed=2)
    assert not torch.equal(other.body[0].weight, Critic(8, seed=1).body[0].weight)
    other.restore(critic.stored())
    assert torch.equal(other.value(states()), critic.value(states())) and not other.is_new


def test_making_a_critic_leaves_torchs_random_state_alone() -> None:
    before = torch.get_rng_state()
    Critic(8, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
