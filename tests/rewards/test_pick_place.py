import numpy as np
import pytest

from stages.rewards.interface import RewardInfo, RewardState
from stages.rewards.library.pick_place import MILESTONES, PickPlaceReward

PROGRAM = PickPlaceReward(near=0.05, approach=0.15, lift=0.05, above=0.07)
BASKET = np.array([0.0, 0.3, 0.0])


def score(
    ee: float = 0.5,
    grasped: bool = False,
    lift: float = 0.0,
    peak: float = 0.0,
    away: float = 0.3,
    success: bool = False,
) -> tuple[float, str]:
    """One state: the end effector `ee` metres from the target, the target `away` metres (in y) from the basket."""
    target = BASKET + np.array([0.0, -away, lift])
    state = RewardState(
        ee_pos=target + np.array([ee, 0.0, 0.0]),
        target_pos=target,
        container_pos=BASKET,
        grasped=np.array(grasped),
        lift=np.array(lift),
        peak_lift=np.array(max(peak, lift)),
    )
    reward, milestone = PROGRAM(state, RewardInfo(task_success=np.array(success)))
    return float(reward), MILESTONES[int(milestone)]


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        ({}, (-2.0, "far")),
        ({"ee": 0.14}, (2.0, "approaching")),
        ({"ee": 0.04}, (4.0, "ready to grasp")),
        ({"ee": 0.01, "grasped": True, "lift": 0.02}, (4.0, "ready to grasp")),
        ({"ee": 0.01, "grasped": True, "lift": 0.06}, (8.0, "lifted")),
        ({"ee": 0.01, "grasped": True, "lift": 0.2, "away": 0.13}, (10.0, "lifted")),
        ({"ee": 0.01, "grasped": True, "lift": 0.2, "away": 0.06}, (12.0, "lifted")),
        ({"ee": 0.1, "lift": 0.1, "away": 0.06}, (12.0, "lifted")),  # let go over the basket
        ({"ee": 0.1, "lift": 0.1, "away": 0.3}, (-4.0, "dropped")),  # falling beside it
        ({"ee": 0.01, "lift": 0.0, "peak": 0.2}, (-4.0, "dropped")),
        ({"ee": 0.01, "lift": 0.0, "peak": 0.2, "grasped": True}, (4.0, "ready to grasp")),  # grasped again
        ({"lift": 0.0, "peak": 0.2, "away": 0.02, "success": True}, (16.0, "placed")),
    ],
)
def test_levels_of_algorithm_2(state: dict, expected: tuple[float, str]) -> None:
    assert score(**state) == expected


def test_a_batch_scores_like_its_parts() -> None:
    ee = np.zeros((2, 3, 3))
    ee[..., 0] = [[0.01, 0.1, 0.5], [0.04, 0.06, 0.16]]
    zeros, no = np.zeros((2, 3)), np.zeros((2, 3), bool)
    state = RewardState(ee, np.zeros((2, 3, 3)), np.ones((2, 3, 3)), no, zeros, zeros)
    reward, _ = PROGRAM(state, RewardInfo(no))
    np.testing.assert_array_equal(reward, [[4, 2, -2], [4, 2, -2]])
