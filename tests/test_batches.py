"""The portions of an optimiser update: every decision once a pass, and an unbiased objective however they are cut."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from stages.batches import Schedule, batches

# Two groups of two trajectories: lengths 5, 2 | 3, 1.
STEP = np.array([0, 1, 2, 3, 4, 0, 1, 0, 1, 2, 0])
GROUP = np.repeat([0, 1], [7, 4])


class Places(SimpleNamespace):
    """As much of `Decisions` as a schedule reads."""

    def __len__(self) -> int:
        return len(self.step)


def cut(schedule: Schedule, minibatch: int = 4, seed: int = 0) -> list[Any]:
    decisions: Any = Places(step=STEP, group=GROUP)
    return batches(decisions, schedule, minibatch, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("schedule", ["step", "minibatch", "group", "trajectories"])
def test_every_decision_comes_once_in_a_pass(schedule: Schedule) -> None:
    rows = np.concatenate([batch.rows for batch in cut(schedule)])
    assert sorted(rows) == list(range(len(STEP)))


@pytest.mark.parametrize("schedule", ["step", "group", "trajectories"])
def test_the_batches_of_a_pass_average_to_the_objective(schedule: Schedule) -> None:
    x = np.random.default_rng(0).normal(size=len(STEP))
    found = cut(schedule)
    assert np.mean([batch.share * x[batch.rows].mean() for batch in found]) == pytest.approx(x.mean())


def test_the_mean_of_a_minibatch_is_unbiased() -> None:
    x = np.random.default_rng(0).normal(size=len(STEP))
    means = [x[cut("minibatch", seed=seed)[0].rows].mean() for seed in range(4000)]
    assert np.mean(means) == pytest.approx(x.mean(), abs=4 * x.std() / np.sqrt(4 * 4000))
    assert all(batch.share == 1 for batch in cut("minibatch"))


def test_steps_come_in_order_with_all_groups_together() -> None:
    assert [batch.rows.tolist() for batch in cut("step")] == [[0, 5, 7, 10], [1, 6, 8], [2, 9], [3], [4]]
    # 5 batches of 11 decisions: a batch of n counts for n * 5 / 11 times its mean.
    assert [batch.share for batch in cut("step")] == pytest.approx([n * 5 / 11 for n in (4, 3, 2, 1, 1)])


def test_minibatches_are_even_and_the_seed_orders_them() -> None:
    assert [len(batch.rows) for batch in cut("minibatch")] == [4, 4, 3]
    assert cut("minibatch")[0].rows.tolist() == cut("minibatch")[0].rows.tolist()
    assert cut("minibatch")[0].rows.tolist() != cut("minibatch", seed=1)[0].rows.tolist()


def test_groups_of_trajectories_stay_whole_and_come_in_random_order() -> None:
    orders = [[int(GROUP[batch.rows[0]]) for batch in cut("trajectories", seed=seed)] for seed in range(8)]
    assert sorted(map(tuple, {tuple(order) for order in orders})) == [(0, 1), (1, 0)]
    for batch in cut("trajectories"):
        (group,) = set(GROUP[batch.rows].tolist())
        assert len(batch.rows) == (group == GROUP).sum()
