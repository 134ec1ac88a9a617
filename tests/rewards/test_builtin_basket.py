"""One object into a basket: the built-in program is Algorithm 2 as the project has always read it."""

import numpy as np
import pytest
from numpy.typing import NDArray

from stages.rewards.builtin import Thresholds, goal_program
from stages.rewards.interface import Context, Moments
from tests.rewards.builtin_moments import context_of, drawn, namespace_of, score, score_each, still

NAMES = (
    "far",
    "approaching",
    "ready to grasp",
    "lifted",
    "near the basket",
    "above the basket",
    "placed",
    "dropped",
)


def algorithm_2(
    context: Context, moments: Moments, thresholds: Thresholds
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """The reference: the hand-written function that rewarded every LIBERO-Object run before there was a generator."""
    target = context.object_names.index(context.target)
    basket = context.object_names.index("basket_1")
    pos, grasped = moments["object_pos"][:, target], moments["object_grasped"][:, target]
    lift = pos[:, 2] - moments["object_initial_pos"][:, target, 2]
    to_target = np.linalg.norm(moments["ee_pos"] - pos, axis=-1)
    to_basket = np.linalg.norm((pos - moments["object_pos"][:, basket])[..., :2], axis=-1)
    lifted = lift > thresholds.lift
    above = to_basket < thresholds.above
    carried = lifted & (grasped | above)
    dropped = (moments["object_peak_lift"][:, target] > thresholds.lift) & ~carried & ~(grasped & ~lifted)
    cases = [
        moments["task_success"],
        carried & above,
        carried & (to_basket < 2 * thresholds.above),
        carried,
        dropped,
        to_target < thresholds.near,
        to_target < thresholds.approach,
    ]
    return np.select(cases, [16.0, 12.0, 10.0, 8.0, -4.0, 4.0, 2.0], -2.0), np.select(cases, [6, 5, 4, 3, 7, 2, 1], 0)


@pytest.mark.parametrize("index", range(10))
@pytest.mark.parametrize("thresholds", [Thresholds(), Thresholds(0.031, 0.1, 0.023, 0.0701)], ids=["shipped", "other"])
def test_equals_algorithm_2_to_the_last_bit(index: int, thresholds: Thresholds) -> None:
    context, joints = context_of(f"libero_object/{index}")
    moments = drawn(context, 5000, np.random.default_rng(index))
    reward, milestone = score(goal_program(context, thresholds, joints), context, moments)
    expected = algorithm_2(context, moments, thresholds)
    np.testing.assert_array_equal(reward, expected[0])
    np.testing.assert_array_equal(milestone, expected[1])
    assert reward.dtype == np.float64
    assert set(reward) == {-4, -2, 2, 4, 8, 10, 12, 16}  # the draw meets every branch


def test_one_by_one_equals_all_at_once() -> None:
    context, joints = context_of("libero_object/7")
    source = goal_program(context, Thresholds(), joints)
    moments = drawn(context, 500, np.random.default_rng(0))
    for together, apart in zip(score(source, context, moments), score_each(source, context, moments), strict=True):
        np.testing.assert_array_equal(together, apart)


@pytest.mark.parametrize(
    ("hand", "held", "lift", "peak", "away", "success", "expected"),
    [
        (0.5, False, 0.0, 0.0, 0.3, False, (-2.0, "far")),
        (0.14, False, 0.0, 0.0, 0.3, False, (2.0, "approaching")),
        (0.04, False, 0.0, 0.0, 0.3, False, (4.0, "ready to grasp")),
        (0.01, True, 0.02, 0.02, 0.3, False, (4.0, "ready to grasp")),
        (0.01, True, 0.06, 0.06, 0.3, False, (8.0, "lifted")),
        (0.01, True, 0.2, 0.2, 0.13, False, (10.0, "near the basket")),
        (0.01, True, 0.2, 0.2, 0.06, False, (12.0, "above the basket")),
        (0.1, False, 0.1, 0.2, 0.06, False, (12.0, "above the basket")),  # let go over the basket
        (0.1, False, 0.1, 0.2, 0.3, False, (-4.0, "dropped")),  # falling beside it
        (0.01, False, 0.0, 0.2, 0.3, False, (-4.0, "dropped")),
        (0.01, True, 0.0, 0.2, 0.3, False, (4.0, "ready to grasp")),  # grasped again
        (0.5, False, 0.0, 0.2, 0.02, True, (16.0, "placed")),
    ],
)
def test_levels(
    hand: float, held: bool, lift: float, peak: float, away: float, success: bool, expected: tuple[float, str]
) -> None:
    """The hand `hand` m from the butter, which is `away` m from the basket and `lift` m up."""
    context, joints = context_of("libero_object/6")
    source = goal_program(context, Thresholds(), joints)
    moments = still(context)
    butter, basket = context.object_names.index("butter_1"), context.object_names.index("basket_1")
    moments["object_pos"][0, butter] = moments["object_pos"][0, basket] + (0, -away, lift)
    moments["ee_pos"][0] = moments["object_pos"][0, butter] + (hand, 0, 0)
    moments["object_grasped"][0, butter] = held
    moments["object_peak_lift"][0, butter] = peak
    moments["task_success"][0] = success
    reward, milestone = score(source, context, moments)
    assert (reward[0], NAMES[milestone[0]]) == expected
    assert namespace_of(source)["MILESTONES"] == NAMES
