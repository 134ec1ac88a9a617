"""Which decisions an update learns from (3 trajectories of 40, 17 and 33 decisions), and which groups it refuses."""

import copy
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stages.algo.objectives import decision_weights
from stages.decisions import gather_decisions
from stages.errors import MismatchError
from stages.store.advantages import Advantages
from stages.store.groups import Group, open_group
from stages.store.schema import AdvantagesAttrs

sys.path.insert(0, str(Path(__file__).parent / "store"))
from group_sample import LENGTHS, write_sample

TOKENS = range(1000)


@pytest.fixture
def group(tmp_path: Path) -> Group:
    write_sample(tmp_path / "group.zarr")
    return open_group(tmp_path / "group.zarr")


def weigh(group: Group, advantage: np.ndarray, used: bool = True, algo: str = "tgrpo") -> Advantages:
    attrs = AdvantagesAttrs(
        task="libero_object/6",
        algo=algo,
        a1=1.0,
        a2=1.0,
        used=used,
        left_out="",
        return_std=1.0,
        iteration=1,
        inputs={},
        params={"advantage": {"hold_success": True}},
    )
    mask = group["mask"][:] & used
    return Advantages(
        path=group.path,
        attrs=attrs,
        step_advantage=np.zeros(mask.shape),
        trajectory_advantage=np.zeros(3),
        advantage=np.where(mask, advantage, 0.0),
        returns=np.array([5.0, 7.0, 9.0]),
        success=np.array([False, True, False]),
        mask=mask,
    )


def with_attrs(group: Group, **changes: Any) -> Group:
    other = copy.copy(group)
    other.attrs = replace(group.attrs, **changes)
    return other


def test_decisions_without_advantage_are_left_out_and_the_objective_stays(group: Group) -> None:
    rng = np.random.default_rng(0)
    advantage = np.where(rng.random(group["mask"].shape) < 0.6, rng.normal(size=group["mask"].shape), 0.0)
    weighed = weigh(group, advantage)
    found = gather_decisions([(group, weighed)], TOKENS)
    assert found is not None
    kept = weighed.mask & (advantage != 0)
    assert 0 < kept.sum() < LENGTHS.sum() == weighed.mask.sum()
    assert len(found) == kept.sum() and (found.advantage != 0).all()
    for name in ("image", "proprio", "action_token", "log_prob"):
        np.testing.assert_array_equal(getattr(found, name), group[name][:][kept])
    # The mean of w x over what is left is 1/M sum_i 1/|o_i| sum_t x_it with x = 0 where there is no advantage.
    expected = np.mean([weighed.advantage[i, :length].sum() / length for i, length in enumerate(LENGTHS)])
    assert np.mean(found.weight * found.advantage) == pytest.approx(expected, rel=1e-6)


def test_kept_on_request_decisions_without_advantage_stay_for_their_kl(group: Group) -> None:
    weighed = weigh(group, np.zeros(group["mask"].shape))
    keeps = {**weighed.attrs.params, "advantage": {**weighed.attrs.params["advantage"], "zero_variance": "keep"}}
    weighed = replace(weighed, attrs=replace(weighed.attrs, params=keeps))
    found = gather_decisions([(group, weighed)], TOKENS)
    assert found is not None and len(found) == LENGTHS.sum() and not found.advantage.any()
    np.testing.assert_array_equal(found.weight, np.repeat(decision_weights(LENGTHS), LENGTHS).astype(np.float32))


def test_with_an_advantage_everywhere_the_weights_are_those_of_the_trajectories(group: Group) -> None:
    found = gather_decisions([(group, weigh(group, np.ones(group["mask"].shape)))], TOKENS)
    assert found is not None
    np.testing.assert_array_equal(found.weight, np.repeat(decision_weights(LENGTHS), LENGTHS).astype(np.float32))
    taken = found.take(np.array([5, 0]))
    assert len(taken) == 2 and taken.instruction == found.instruction
    np.testing.assert_array_equal(taken.log_prob, found.log_prob[[5, 0]])


def test_every_decision_knows_its_place(group: Group) -> None:
    pairs = [(group, weigh(group, np.ones(group["mask"].shape)))] * 2
    found = gather_decisions(pairs, TOKENS)
    assert found is not None
    expected = [(g, 3 * g + i, t) for g in (0, 1) for i, length in enumerate(LENGTHS) for t in range(length)]
    assert list(zip(found.group, found.trajectory, found.step, strict=True)) == expected
    np.testing.assert_array_equal(found.returns, np.array([5.0, 7.0, 9.0])[found.trajectory % 3])
    np.testing.assert_array_equal(found.reward, 1.0 + found.step % 2)  # as the sample has it
    # Only the second trajectory succeeds, with its last decision.
    assert np.argwhere(found.success)[:, 0].tolist() == [LENGTHS[0] + LENGTHS[1] - 1 + n for n in (0, LENGTHS.sum())]
    assert found.hold_success


@pytest.mark.parametrize(
    ("algo", "all_of_them"), [("tgrpo", False), ("reinforce", False), ("ppo", True), ("grape", True)]
)
def test_which_algorithms_take_decisions_without_advantage_and_what_say_each_has(
    group: Group, algo: str, all_of_them: bool
) -> None:
    advantage = np.zeros(group["mask"].shape)
    advantage[:, ::2] = 1.0
    found = gather_decisions([(group, weigh(group, advantage, algo=algo))], TOKENS)
    assert found is not None
    even = -(-LENGTHS // 2)
    assert len(found) == (LENGTHS if all_of_them else even).sum()
    if algo == "tgrpo":  # each trajectory has the same say, however long
        says = [found.weight[found.trajectory == i].sum() * LENGTHS[i] / even[i] for i in range(3)]
        np.testing.assert_allclose(says, says[0], rtol=1e-5)
    else:  # each decision has, and the mean of w x is that over all decisions taken
        np.testing.assert_allclose(found.weight, len(found) / LENGTHS.sum(), rtol=1e-6)


def test_nothing_is_left_of_groups_without_advantage(group: Group) -> None:
    nothing = np.zeros(group["mask"].shape)
    assert gather_decisions([(group, weigh(group, nothing))], TOKENS) is None
    assert gather_decisions([(group, weigh(group, nothing + 1, used=False))], TOKENS) is None


def test_tokens_that_the_policy_cannot_have_sampled_are_refused(group: Group) -> None:
    pairs = [(group, weigh(group, np.ones(group["mask"].shape)))]
    tokens = group["action_token"][:][group["mask"][:]]
    low, high = int(tokens.min()), int(tokens.max())
    assert gather_decisions(pairs, range(low, high + 1)) is not None
    for ids in (range(low + 1, high + 1), range(low, high)):
        with pytest.raises(MismatchError, match=rf"group\.zarr holds tokens {low} to {high}.*policy\.sampling"):
            gather_decisions(pairs, ids)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"instruction": "open the drawer"}, "has instruction 'open the drawer', but .* has 'pick up the butter"),
        ({"temperature": 0.5}, r"has temperature 0\.5, but .* has 1\.0"),
    ],
)
def test_groups_of_another_rollout_are_refused(group: Group, change: dict[str, Any], message: str) -> None:
    advantages = weigh(group, np.ones(group["mask"].shape))
    with pytest.raises(MismatchError, match=message):
        gather_decisions([(group, advantages), (with_attrs(group, **change), advantages)], TOKENS)


def test_a_greedy_group_is_refused(group: Group) -> None:
    greedy = with_attrs(group, temperature=0.0)
    with pytest.raises(MismatchError, match="sampled greedily"):
        gather_decisions([(greedy, weigh(group, np.ones(group["mask"].shape)))], TOKENS)


def test_groups_without_images_are_refused(group: Group) -> None:
    blind = with_attrs(group, image_size=0)
    with pytest.raises(MismatchError, match="holds no images"):
        gather_decisions([(blind, weigh(blind, np.ones(group["mask"].shape)))], TOKENS)
