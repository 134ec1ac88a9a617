"""How `tgrpo advantage` weighs a stored group for each algorithm: what it learns from, and which groups it leaves out."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stages.advantage import advantages, weigh_group
from stages.describe import describe
from stages.errors import ArtifactError, MismatchError, UsageError
from stages.params import Params
from stages.reporting import Silent
from stages.store.advantages import Advantages, open_advantages
from stages.store.groups import open_group, write_group

sys.path.insert(0, str(Path(__file__).parent / "store"))
from group_sample import ATTRS, LENGTHS, S, decision, given, scene, write_sample

from tests.conftest import ROOT, Run
from tgrpo_cli.advantage import command

# Three trajectories. The first succeeds with its second decision, the others fail after three.
REWARD = ((2.0, 16.0), (2.0, 2.0, 4.0), (-2.0, -2.0, -2.0))
SUCCEEDED = (True, False, False)
ALL_OF_THEM = ("tgrpo", "tgrpo_no_s", "tgrpo_no_t", "grpo", "reinforce", "ppo", "grape", "sft")


def write(
    path: Path, reward: Sequence[Sequence[float]] = REWARD, succeeded: Sequence[bool] = SUCCEEDED, milestone: int = 0
) -> Path:
    """A group with these rewards; every other array is that of the sample."""
    lengths = np.array([len(row) for row in reward])
    rng = np.random.default_rng(0)
    with write_group(
        path,
        ATTRS,
        trajectories=len(reward),
        initial_state=rng.normal(size=S),
        initial_scene=scene(rng=rng),
        score=given([[*row, *[0.0] * (lengths.max() - len(row))] for row in reward], milestone),
    ) as writer:
        for t in range(lengths.max()):
            step = {name: value[: len(reward)] for name, value in decision(t).items()}
            step["mask"] = t < lengths
            step["scene"] = replace(step["scene"], success=(t == lengths - 1) & np.array(succeeded))
            writer.append(**step)
    return path


def weigh(group: Path, params: Params, algo: str = "tgrpo", **changes: object) -> Advantages:
    params = params.model_copy(
        update={
            "advantage": params.advantage.model_copy(update={"group_by": "step", "min_return_std": 0.0, **changes}),
            "update": params.update.model_copy(update={"algo": algo, "gamma": 0.5}),
        }
    )
    out = group.with_name("advantages.zarr")
    weigh_group(open_group(group), params, out, overwrite=True)
    return open_advantages(out)


def test_a_held_success_counts_in_the_return_and_not_in_the_steps(tmp_path: Path, params: Params) -> None:
    found = weigh(write_sample(tmp_path / "g.zarr"), params, hold_success=True)
    # Every reward at t is 1 + t % 2. Sums: 40 + 20 = 60; 17 + 8 = 25, then 23 more steps of the last reward 1; 33 + 16 = 49.
    np.testing.assert_array_equal(found.returns, [60, 48, 49])
    # At each t all that still run have one reward, so no step is better than another, also after the success.
    assert (found.step_advantage == 0).all()
    expected = (np.array([60, 48, 49]) - 157 / 3) / np.std([60, 48, 49], ddof=1)
    np.testing.assert_allclose(found.trajectory_advantage, expected)
    np.testing.assert_array_equal(found.mask.sum(1), LENGTHS)  # the held steps are not trained on
    assert (found.advantage[~found.mask] == 0).all()


def test_without_the_hold_an_early_success_is_worth_less(tmp_path: Path, params: Params) -> None:
    found = weigh(write_sample(tmp_path / "g.zarr"), params, hold_success=False)
    np.testing.assert_array_equal(found.returns, [60, 25, 49])


# Of REWARD by hand. Returns 2 + 16 + 16 (held) = 34; 8; -6: mean 12, squares 22^2 + 4^2 + 18^2 = 824, std = sqrt(412).
T = np.array([22.0, -4.0, -18.0]) / 412**0.5
# S at t=0: 2, 2, -2: mean 2/3, squares 16/9 + 16/9 + 64/9 = 32/3, std = sqrt(16/3) -> 1, 1, -2 over sqrt 3.
#   at t=1: 16, 2, -2: mean 16/3, squares 1024/9 + 100/9 + 484/9 = 536/3, std = sqrt(268/3).
#   at t=2: the two that still run, 4 and -2 -> +1, -1 over sqrt 2.
S_0, S_1, S_2 = (
    np.array([1, 1, -2]) / 3**0.5,
    np.array([32, -10, -22]) / 3 / (268 / 3) ** 0.5,
    np.array([0, 1, -1]) / 2**0.5,
)
STEP = np.stack([S_0, S_1, S_2], 1)
TAKEN = np.array([[1, 1, 0], [1, 1, 1], [1, 1, 1]], bool)


@pytest.mark.parametrize(
    ("algo", "a1", "a2"), [("tgrpo", 0.3, 0.7), ("tgrpo_no_t", 1.0, 0.0), ("tgrpo_no_s", 0.0, 1.0)]
)
def test_tgrpo_and_its_two_ablations(tmp_path: Path, params: Params, algo: str, a1: float, a2: float) -> None:
    found = weigh(write(tmp_path / "g.zarr"), params, algo)
    np.testing.assert_allclose(found.advantage, np.where(TAKEN, a1 * STEP + a2 * T[:, None], 0), atol=1e-12)
    np.testing.assert_array_equal(found.mask, TAKEN)
    assert (found.attrs.algo, found.attrs.a1, found.attrs.a2, found.attrs.used) == (algo, a1, a2, True)
    assert found.attrs.return_std == pytest.approx(412**0.5)


def test_grpo_knows_the_outcome_alone(tmp_path: Path, params: Params) -> None:
    found = weigh(write(tmp_path / "g.zarr"), params, "grpo")
    # Outcomes 1, 0, 0: mean 1/3, squares 4/9 + 1/9 + 1/9 = 2/3, std = sqrt(1/3) -> 2, -1, -1 over sqrt 3.
    outcome = np.array([2, -1, -1]) / 3**0.5
    np.testing.assert_allclose(found.advantage, np.where(TAKEN, outcome[:, None], 0), atol=1e-12)
    np.testing.assert_array_equal(found.returns, [1, 0, 0])
    for succeeded, says in ((True, "all of its trajectories succeeded"), (False, "none of its trajectories succeeded")):
        group = write(tmp_path / f"{succeeded}.zarr", succeeded=[succeeded] * 3)
        alike = weigh(group, params, "grpo")
        assert alike.attrs.left_out == says and not alike.attrs.used and not alike.mask.any()


def test_reinforce_weighs_with_what_follows(tmp_path: Path, params: Params) -> None:
    found = weigh(write(tmp_path / "g.zarr"), params, "reinforce")
    # Half a decision later, the success held to t=2: 16; 16 + 8 = 24; 2 + 12 = 14. Then 4; 2 + 2; 2 + 2. -2; -3; -3.5.
    to_go = np.array([[14, 24, 0], [4, 4, 4], [-3.5, -3, -2]])
    values = to_go[TAKEN]
    expected = np.where(TAKEN, (to_go - values.mean()) / values.std(ddof=1), 0)
    np.testing.assert_allclose(found.advantage, expected, atol=1e-12)
    np.testing.assert_array_equal(found.returns, [34, 8, -6])


def test_steps_that_never_differ_teach_the_step_level_nothing(tmp_path: Path, params: Params) -> None:
    found = weigh(write_sample(tmp_path / "g.zarr"), params, "tgrpo_no_t")  # its returns differ by the lengths alone
    assert found.attrs.left_out == "no decision has an advantage" and not found.mask.any()


def test_sft_imitates_successes_and_nothing_else(tmp_path: Path, params: Params) -> None:
    found = weigh(write(tmp_path / "g.zarr"), params, "sft")
    np.testing.assert_array_equal(found.advantage, [[1, 1, 0], [0, 0, 0], [0, 0, 0]])
    np.testing.assert_array_equal(found.mask, found.advantage == 1)
    assert not weigh(write(tmp_path / "none.zarr", succeeded=[False] * 3), params, "sft").attrs.used


@pytest.mark.parametrize("algo", ["ppo", "grape"])
def test_ppo_and_grape_find_their_weights_in_the_update(tmp_path: Path, params: Params, algo: str) -> None:
    found = weigh(write(tmp_path / "g.zarr"), params, algo)
    assert not found.advantage.any() and (found.attrs.a1, found.attrs.a2) == (0, 0)
    np.testing.assert_array_equal(found.mask, TAKEN)
    np.testing.assert_array_equal(found.returns, [34, 8, -6])
    np.testing.assert_array_equal(found.success, SUCCEEDED)


def test_milestones_take_the_place_of_time_steps(tmp_path: Path, params: Params) -> None:
    found = weigh(
        write(tmp_path / "g.zarr"), params, group_by="milestone"
    )  # all in milestone 0: one comparison of all 8
    rewards = np.array([[2, 16, 0], [2, 2, 4], [-2, -2, -2]])
    compared = np.where(TAKEN, (rewards - rewards[TAKEN].mean()) / rewards[TAKEN].std(ddof=1), 0)
    np.testing.assert_allclose(found.step_advantage, compared, atol=1e-12)


def test_auto_weights_are_recorded_and_used(tmp_path: Path, params: Params) -> None:
    found = weigh(write(tmp_path / "g.zarr"), params, weights="auto")
    a1, a2 = found.attrs.a1, found.attrs.a2
    assert 0 < a1 < 1 and a1 + a2 == pytest.approx(1) and (a1, a2) != (0.3, 0.7)
    np.testing.assert_allclose(found.advantage, np.where(TAKEN, a1 * STEP + a2 * T[:, None], 0), atol=1e-12)


@pytest.mark.parametrize("algo", ["tgrpo", "tgrpo_no_s", "tgrpo_no_t", "reinforce", "grape"])
def test_a_group_whose_returns_hardly_differ_is_left_out_whole(tmp_path: Path, params: Params, algo: str) -> None:
    found = weigh(write(tmp_path / "g.zarr"), params, algo, min_return_std=40.0)
    assert not found.attrs.used and not found.mask.any()
    assert found.attrs.left_out == "its returns deviate by 20.3, less than advantage.min_return_std = 40"


@pytest.mark.parametrize("algo", ["ppo", "sft"])
def test_what_compares_nothing_needs_no_difference(tmp_path: Path, params: Params, algo: str) -> None:
    group = write(tmp_path / "g.zarr", reward=((2.0, 2.0),), succeeded=[True])
    found = weigh(group, params, algo, min_return_std=40.0)
    assert found.attrs.used and found.mask.all()


@pytest.mark.parametrize("algo", ["tgrpo", "tgrpo_no_s", "tgrpo_no_t", "reinforce", "grape"])
def test_constant_rewards_leave_the_group_out_and_say_so(tmp_path: Path, params: Params, algo: str) -> None:
    group = write(tmp_path / "g.zarr", reward=((-2.0, -2.0),) * 3, succeeded=[False] * 3)
    found = weigh(group, params, algo)
    assert found.attrs.left_out == "every reward is -2" and not found.mask.any()


@pytest.mark.parametrize("algo", ["tgrpo", "tgrpo_no_s", "tgrpo_no_t", "grpo"])
def test_kept_on_request_a_group_without_variance_has_its_kl_alone(tmp_path: Path, params: Params, algo: str) -> None:
    group = write(tmp_path / "g.zarr", reward=((-2.0, -2.0),) * 3, succeeded=[False] * 3)
    found = weigh(group, params, algo, zero_variance="keep")
    assert found.attrs.used and not found.advantage.any() and (found.mask == open_group(group)["mask"][:]).all()
    few = weigh(group, params, algo, zero_variance="keep", min_return_std=1.0) if algo != "grpo" else None
    assert few is None or not few.attrs.used  # asked for by name, and left out


@pytest.mark.parametrize("algo", ALL_OF_THEM)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_reward_that_is_not_finite_is_named(tmp_path: Path, params: Params, algo: str, value: float) -> None:
    group = write(tmp_path / "g.zarr", reward=((2.0, 16.0), (2.0, 2.0, value), (-2.0, -2.0, -2.0)))
    with pytest.raises(
        ArtifactError, match=rf"g\.zarr: the reward of trajectory 1 after decision 2 is {value}, .*rollout"
    ):
        weigh(group, params, algo)


@pytest.mark.parametrize("algo", ["tgrpo", "grpo", "reinforce", "grape"])
def test_one_trajectory_has_nothing_to_compare_with(tmp_path: Path, params: Params, algo: str) -> None:
    group = write(tmp_path / "g.zarr", reward=((2.0, 4.0),), succeeded=[False])
    with pytest.raises(MismatchError, match=rf"one trajectory, and {algo} compares trajectories; .*--envs 4"):
        weigh(group, params, algo)


class Notes(Silent):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def test_it_is_said_when_no_group_is_of_use(tmp_path: Path, params: Params) -> None:
    alike = [write(tmp_path / f"{name}.zarr", reward=((1.0,),) * 3, succeeded=[False] * 3) for name in "ab"]
    for groups, last in ((alike, "nothing to learn from in any of the 2 groups"), (alike[:1], "in the group;")):
        told = Notes()
        out = tmp_path / str(len(groups))
        assert not any(h.extra["used"] for h in advantages(params, map(describe, groups), out, reporter=told))
        assert told.notes[0] == f"{alike[0]} is left out: every reward is 1" and last in told.notes[-1]
    told = Notes()
    useful = write(tmp_path / "c.zarr")
    small = params.model_copy(update={"advantage": params.advantage.model_copy(update={"min_return_std": 0.0})})
    list(advantages(small, map(describe, [*alike, useful]), tmp_path / "mixed", reporter=told))
    assert len(told.notes) == 2 and "nothing" not in told.notes[-1]


def test_flags_come_before_the_weights_of_a_task(tmp_path: Path, tgrpo: Callable[..., Run]) -> None:
    group = write_sample(tmp_path / "group.zarr")
    own = f"advantage.per_task={{{ATTRS.task}: {{a1: 10, a2: 5}}}}"
    for flags, want in (((), (10, 5)), (("--a1", "2"), (2, 5)), (("--a1", "3", "--a2", "1"), (3, 1))):
        out = tmp_path / f"{want[0]}.zarr"
        assert tgrpo("advantage", group, "--set", own, *flags, "--out", out).code == 0
        attrs = open_advantages(out).attrs
        assert (attrs.a1, attrs.a2) == want


def test_flags_choose_the_algorithm_and_the_rule(tmp_path: Path, tgrpo: Callable[..., Run]) -> None:
    group = write(tmp_path / "g.zarr")
    run = tgrpo("advantage", group, "--algo", "grpo", "--out", tmp_path / "grpo.zarr")
    assert run.code == 0 and run.handles[0]["algo"] == "grpo", run.err
    run = tgrpo(
        "advantage", group, "--weights", "auto", "--set", "advantage.min_return_std=0", "--out", tmp_path / "auto.zarr"
    )
    assert run.code == 0 and run.handles[0]["a1"] + run.handles[0]["a2"] == pytest.approx(1), run.err


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ({"algo": "a2c"}, r"update\.algo = 'a2c'"),
        ({"a1": 0.0, "a2": 0.0}, "every advantage would be zero; give at least one"),
        ({"weights": "auto", "a1": 1.0}, "--weights auto finds a1 and a2 itself; leave"),
        ({"algo": "grpo", "a2": 1.0}, "grpo has no use for them"),
    ],
)
def test_flags_that_mean_nothing_are_refused(flags: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says) as refused:
        command([Path("nowhere.zarr")], params=ROOT / "params.yaml", **flags)
    assert "\n" not in str(refused.value)
