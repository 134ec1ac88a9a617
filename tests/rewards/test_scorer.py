"""Recorded scenes -> moments -> rewards, with programs that run in the sandbox."""

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stages.errors import ArtifactError, MismatchError
from stages.rewards.errors import RewardError
from stages.rewards.interface import MOMENT_FIELDS, moment_dtype, moment_shape
from stages.rewards.program import Reward
from stages.rewards.scorer import Scorer, make_context, moments
from stages.types import Scene, SceneNames

sys.path.insert(0, str(Path(__file__).parents[1] / "store"))
from group_sample import ATTRS, G, Q, scene

T, LIMIT = 5, 80
NAMES = SceneNames(ATTRS.object_names, ATTRS.joint_names, ATTRS.joint_ranges, ATTRS.place_names, ATTRS.goals)
ENV_STEPS = np.array([[2, 2, 2, 2, 2], [2, 1, 0, 0, 0], [2, 2, 2, 2, 1]], np.int16)
TAKEN = ENV_STEPS > 0
INITIAL = scene(rng=np.random.default_rng(1))


def recorded() -> Scene:
    """(G, T) scenes as a group holds them: all zeros where no decision was taken."""
    full = scene(G, T, rng=np.random.default_rng(2), success=np.zeros((G, T), np.bool_))
    return Scene(**{name: np.where(TAKEN.reshape(G, T, *[1] * (a.ndim - 2)), a, 0) for name, a in vars(full).items()})


def program(body: str) -> str:
    return f"def compute_reward(state, info):\n    {body}\n"


@pytest.fixture(scope="module")
def steps() -> Iterator[Scorer]:
    with Scorer(Reward(ATTRS.task, program('return 0.5 * state.step, {"milestone": state.step}'))) as scorer:
        yield scorer


def test_moments_have_the_shapes_and_kinds_of_the_interface() -> None:
    found, context = moments(INITIAL, recorded(), ENV_STEPS), make_context(ATTRS.task, NAMES, LIMIT)
    assert found.keys() == MOMENT_FIELDS.keys()
    for name, array in found.items():
        assert (array.shape, array.dtype) == ((TAKEN.sum(), *moment_shape(name, context)), moment_dtype(name)), name


def test_moments_by_hand() -> None:
    scenes = recorded()
    height = INITIAL.object_pos[0, 2]
    scenes.object_pos[0, :, 0, 2] = height + np.array([-0.1, 0.2, 0.1, 0.3, 0.0])
    found = moments(INITIAL, scenes, ENV_STEPS)
    np.testing.assert_array_equal(found["step"], [2, 4, 6, 8, 10, 2, 3, 2, 4, 6, 8, 9])
    # The start counts, so that an object which only sank has a peak of 0.
    np.testing.assert_allclose(found["object_peak_lift"][:5, 0], [0.0, 0.2, 0.2, 0.3, 0.3])
    np.testing.assert_array_equal(found["object_pos"][5:7], scenes.object_pos[1, :2])
    for name in ("object_initial_pos", "object_initial_quat", "joint_initial_pos"):
        expected = getattr(INITIAL, name.replace("initial_", ""))
        assert all((row == expected).all() for row in found[name])
    fingers = scenes.gripper_qpos[2, 0]
    assert found["gripper_opening"][7] == fingers[0] - fingers[1]


def test_a_program_sees_each_decision_and_nothing_where_none_was_taken(steps: Scorer) -> None:
    reward, milestone = steps.on(ATTRS.task, NAMES, LIMIT)(INITIAL, recorded(), ENV_STEPS)
    assert (reward.dtype, milestone.dtype) == (np.float32, np.int8)
    np.testing.assert_array_equal(milestone, np.where(TAKEN, np.cumsum(ENV_STEPS, axis=1), 0))
    np.testing.assert_array_equal(reward, 0.5 * milestone)


def test_a_group_without_any_decision_needs_no_program(steps: Scorer) -> None:
    reward, milestone = steps.on(ATTRS.task, NAMES, LIMIT)(INITIAL, recorded(), np.zeros_like(ENV_STEPS))
    assert not reward.any() and not milestone.any()


def test_names_and_the_limit_reach_the_program() -> None:
    body = (
        'return state.max_steps + state.places["stove_1_knob"][2] + state.joints["stove_1_button"].pos'
        ' + 1000.0 * state.goals[0].holds * (state.target == "butter_1")'
    )
    scenes = recorded()
    with Scorer(Reward("", program(body))) as scorer:
        for limit in (LIMIT, 2 * LIMIT):  # another context, so another process
            reward, _ = scorer.on("libero_goal/7", NAMES, limit)(INITIAL, scenes, ENV_STEPS)
            expected = limit + scenes.place_pos[..., 1, 2] + scenes.joint_pos[..., 0] + 1000.0 * scenes.goal[..., Q - 1]
            np.testing.assert_array_equal(reward, np.where(TAKEN, expected, 0).astype(np.float32))


def test_key_poses_reach_the_program() -> None:
    pose = {"ee_pos": [0.0, 0.5, 0.0], "ee_quat": [0.0, 0.0, 0.0, 1.0], "gripper_opening": 0.08, "object_pos": {}}
    with Scorer(Reward(ATTRS.task, program("return state.key_poses[0].ee_pos[1]"), (pose,))) as scorer:
        reward, _ = scorer.on(ATTRS.task, NAMES, LIMIT)(INITIAL, recorded(), ENV_STEPS)
    np.testing.assert_array_equal(reward, np.where(TAKEN, 0.5, 0).astype(np.float32))


def test_a_program_that_fails_is_named_and_the_next_works(steps: Scorer) -> None:
    broken = program("return 1.0 / (state.step - 3)").replace("\n    ", "\n\n    ")
    with (
        Scorer(Reward(ATTRS.task, broken, path="mine.py")) as scorer,
        pytest.raises(RewardError, match=r"^mine\.py, line 3: "),
    ):
        scorer.on(ATTRS.task, NAMES, LIMIT)(INITIAL, recorded(), ENV_STEPS)
    assert steps.on(ATTRS.task, NAMES, LIMIT)(INITIAL, recorded(), ENV_STEPS)[0].any()


def test_a_reward_for_another_task_is_refused(steps: Scorer) -> None:
    with pytest.raises(MismatchError, match=r"a reward for libero_object/6, and the task is libero_goal/7; .*--task"):
        steps.on("libero_goal/7", NAMES, LIMIT)


def test_a_reward_comes_back_from_json() -> None:
    reward = Reward("libero_object/6", program("return 1.0"), ({"ee_pos": [1.0]},), "mine.py")
    again = Reward.from_json(reward.to_json(), "g.zarr")
    assert replace(again, path="mine.py") == reward and again.digest == reward.digest
    assert len({reward.digest, replace(reward, key_poses=()).digest, replace(reward, source="").digest}) == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"source": "import os"}, r"g\.zarr: its reward has digest [0-9a-f]{12}, expected [0-9a-f]{12}"),
        ({"digest": None}, "expected None"),
        ({"key_poses": None}, "g.zarr has no whole reward"),
    ],
)
def test_a_reward_that_was_changed_is_refused(change: dict[str, Any], message: str) -> None:
    stored = Reward("libero_object/6", program("return 1.0")).to_json()
    with pytest.raises(ArtifactError, match=message):
        Reward.from_json({**stored, **change}, "g.zarr")
    with pytest.raises(ArtifactError, match="no whole reward"):
        Reward.from_json({name: stored[name] for name in stored if name not in change}, "g.zarr")
