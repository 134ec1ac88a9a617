"""The two-part form: key poses of a demonstration, and what is rewarded for being as in them."""

from typing import Any

import numpy as np
import pytest

from stages.errors import MismatchError
from stages.rewards.builtin import Thresholds, key_pose_program, key_poses_of, stage_program, stages_of
from stages.rewards.interface import Context
from stages.rewards.sandbox import check_program
from stages.types import Scene
from tests.rewards.builtin_moments import TASKS, context_of, drawn, namespace_of, score, score_each, still

BOWL, PLATE = "akita_black_bowl_1", "plate_1"
START, END = np.array([0.0, 0.0, 0.9]), np.array([0.3, 0.2, 0.92])
# The bowl of the demonstration at the key poses of libero_goal/8: reached twice, lifted, near and above the plate, let go.
LIFTED, NEAR, ABOVE = np.array([0, 0, 0.06]), np.array([-0.1, 0, 0.15]), np.array([-0.05, 0, 0.15])
DEMO = [START, START, START + LIFTED, END + NEAR, END + ABOVE, END]
GRIP = np.array([0.047, 0.0, 0.036])


def key_poses(context: Context) -> list[dict[str, Any]]:
    return [
        {
            "ee_pos": (at + GRIP).tolist(),
            "ee_quat": [1.0, 0.0, 0.0, 0.0],
            "gripper_opening": 0.08 if k < 2 else 0.01,
            "object_pos": {name: (END if name == PLATE else at).tolist() for name in context.object_names},
        }
        for k, at in enumerate(DEMO)
    ]


def scenes(times: int) -> Scene:
    """A trajectory whose numbers tell the time."""
    t = np.arange(times, dtype=np.float64)
    flags = np.zeros((times, 1), bool)
    return Scene(
        ee_pos=np.tile(t[:, None], (1, 3)),
        ee_quat=np.tile(t[:, None], (1, 4)),
        gripper_qpos=np.stack([0.01 * t, -0.01 * t], axis=1),
        object_pos=np.tile(t[:, None, None], (1, 1, 3)),
        object_quat=np.zeros((times, 1, 4)),
        object_lin_vel=np.zeros((times, 1, 3)),
        object_ang_vel=np.zeros((times, 1, 3)),
        grasped=flags,
        touched=flags,
        joint_pos=np.zeros((times, 0)),
        place_pos=np.zeros((times, 0, 3)),
        goal=flags,
        success=flags[:, 0],
    )


def test_a_key_pose_is_the_first_moment_beyond_a_stage() -> None:
    milestone = np.array([0, 0, 1, 2, 1, 3, 7, 3, 4, 6])  # 7 is a drop; stage 5 is skipped
    poses = key_poses_of(scenes(10), milestone, ["bowl"], 6)
    assert [pose["ee_pos"][0] for pose in poses] == [2, 3, 5, 8, 9, 9]
    assert poses[2]["gripper_opening"] == pytest.approx(0.1)
    assert poses[3]["object_pos"] == {"bowl": [8, 8, 8]}


def test_a_demonstration_that_fails_is_refused() -> None:
    with pytest.raises(MismatchError, match="milestone 5 of 6"):
        key_poses_of(scenes(4), np.array([0, 3, 5, 7]), ["bowl"], 6)


def test_a_program_needs_as_many_key_poses_as_stages() -> None:
    context, joints = context_of("libero_10/0")
    with pytest.raises(MismatchError, match="needs 12 key poses, found 0"):
        key_pose_program(context, Thresholds(), joints)


@pytest.mark.parametrize("task_id", TASKS)
def test_every_task_has_a_two_part_program(task_id: str) -> None:
    context, joints = context_of(task_id)
    rng = np.random.default_rng(5)
    moments = drawn(context, 200, rng)
    poses = [
        {
            "ee_pos": rng.normal(0, 0.05, 3).tolist(),
            "ee_quat": [1.0, 0.0, 0.0, 0.0],
            "gripper_opening": 0.04,
            "object_pos": {name: rng.normal(0, 0.05, 3).tolist() for name in context.object_names},
        }
        for _ in range(stages_of(context, joints))
    ]
    context, joints = context_of(task_id, poses)
    source = key_pose_program(context, Thresholds(), joints)
    check_program(source, "reward.py")
    assert max(len(line) for line in source.splitlines()) <= 120
    reward, milestone = score(source, context, moments)
    for together, apart in zip((reward, milestone), score_each(source, context, moments), strict=True):
        np.testing.assert_array_equal(together, apart)
    assert all(len(set(reward[milestone == index])) == 1 for index in set(milestone))
    assert milestone.max() < len(namespace_of(source)["MILESTONES"])
    staged, _ = score(stage_program(context, Thresholds(), joints), context, moments)
    bonus = reward - staged
    assert set(bonus) <= {0.0, 0.25, 0.5}
    assert not bonus[
        (staged < -2) | moments["task_success"]
    ].any()  # a drop, and completion, are worth the same for all


def bonus(
    bowl: np.ndarray, start: np.ndarray, end: np.ndarray, *, held: bool, hand: np.ndarray, opening: float
) -> float:
    """What the key poses add for a bowl that began at `start` and shall go to a plate at `end`."""
    bare, joints = context_of("libero_goal/8")
    context, _ = context_of("libero_goal/8", key_poses(bare))
    moments = still(context)
    o, plate = context.object_names.index(BOWL), context.object_names.index(PLATE)
    moments["object_initial_pos"][0, o], moments["object_pos"][0, o] = start, bowl
    moments["object_pos"][0, plate] = end
    moments["object_peak_lift"][0, o] = bowl[2] - start[2]
    moments["object_grasped"][0, o] = held
    moments["ee_pos"][0], moments["gripper_opening"][0] = hand, opening
    two_part, _ = score(key_pose_program(context, Thresholds(), joints), context, moments)
    staged, _ = score(stage_program(context, Thresholds(), joints), context, moments)
    return float(two_part[0] - staged[0])


@pytest.mark.parametrize("aside", [np.zeros(3), np.array([-0.2, 0.15, 0.0])], ids=["same start", "other start"])
@pytest.mark.parametrize("beyond", [np.zeros(3), np.array([0.1, -0.25, 0.0])], ids=["same place", "other place"])
def test_key_poses_move_with_the_start_and_the_place(aside: np.ndarray, beyond: np.ndarray) -> None:
    start, end = START + aside, END + beyond
    gripped = start + np.array([0, 0, 0.03])  # 3 cm under where the demonstration has it lifted
    assert bonus(gripped, start, end, held=True, hand=gripped + GRIP, opening=0.01) == 0.5
    coming = np.array([end[0] - 0.145, end[1], start[2] + 0.17])  # 4.5 cm before it is near the plate
    assert bonus(coming, start, end, held=True, hand=coming + GRIP, opening=0.01) == 0.5
    astray = coming + np.array([0, 0.2, 0])
    assert bonus(astray, start, end, held=True, hand=astray + GRIP, opening=0.01) == 0.25


@pytest.mark.parametrize(
    ("offset", "opening", "expected"),
    [((0, 0, 0), 0.01, 0.5), ((0, 0, 0), 0.08, 0.25), ((0, 0.06, 0), 0.01, 0.25)],
    ids=["as in the key pose", "open", "aside"],
)
def test_the_hand_counts_by_position_and_opening(
    offset: tuple[float, float, float], opening: float, expected: float
) -> None:
    bowl = START + np.array([0, 0, 0.03])
    assert bonus(bowl, START, END, held=True, hand=bowl + GRIP + offset, opening=opening) == expected
