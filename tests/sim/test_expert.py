"""The scripted expert: its choices in made-up scenes, and whole episodes in the simulator."""

from collections.abc import Iterator
from math import sqrt

import numpy as np
import pytest

from stages.errors import TaskError
from stages.sim.assets import resolve_assets
from stages.sim.env import LiberoEnv
from stages.sim.expert import GRASPS, PickPlaceExpert, rotate
from stages.sim.tasks import load_task
from stages.types import InitialState, Scene
from tests.sim.sample import SIM

NAMES = ("butter_1", "basket_1")
BUTTER, BASKET = (-0.12, -0.24, 0.009), (0.0, 0.26, 0.0)


def _scene(
    hand: tuple[float, float, float], butter: tuple[float, float, float] = BUTTER, grasped: bool = False
) -> Scene:
    return Scene(
        ee_pos=np.array(hand),
        ee_quat=np.array([1.0, 0, 0, 0]),
        gripper_qpos=np.array([0.04, -0.04]),
        object_pos=np.array([butter, BASKET]),
        object_quat=np.array([[0.0, 0, 0, 1], [0, 0, 0, 1]]),
        object_lin_vel=np.zeros((2, 3)),
        object_ang_vel=np.zeros((2, 3)),
        grasped=np.array([grasped, False]),
        touched=np.array([grasped, False]),
        joint_pos=np.zeros(0),
        place_pos=np.zeros((0, 3)),
        goal=np.zeros(1, np.bool_),
        success=np.array(False),
    )


@pytest.mark.parametrize(
    ("scene", "phase", "signs"),
    [
        (_scene((-0.15, 0.0, 0.26)), "approach", [1, -1, -1, -1]),
        (_scene((-0.05, -0.24, 0.02)), "approach", [-1, 0, 1, -1]),  # up before sideways, over what may stand there
        (_scene((-0.12, -0.24, 0.10)), "descend", [0, 0, -1, -1]),
        (_scene(BUTTER), "grasp", [0, 0, 0, 1]),
        (_scene(BUTTER, grasped=True), "lift", [0, 0, 1, 1]),
        (_scene((-0.12, -0.24, 0.185), butter=(-0.12, -0.24, 0.185), grasped=True), "transport", [1, 1, 0, 1]),
        (_scene((0.0, 0.26, 0.185), butter=(0.0, 0.26, 0.185), grasped=True), "release", [0, 0, -1, -1]),
    ],
)
def test_action_follows_from_the_scene(scene: Scene, phase: str, signs: list[int]) -> None:
    expert = PickPlaceExpert(NAMES, "butter_1")
    action = expert.act(scene)
    assert expert.phase == phase
    np.testing.assert_array_equal(np.sign(action[[0, 1, 2, 6]]), signs)
    np.testing.assert_array_equal(action[3:6], 0)
    assert np.abs(action).max() <= 1


def test_action_has_no_memory() -> None:
    expert = PickPlaceExpert(NAMES, "butter_1")
    far = _scene((-0.15, 0.0, 0.26))
    first = expert.act(far)
    expert.act(_scene(BUTTER, grasped=True))
    np.testing.assert_array_equal(expert.act(far), first)


def test_a_lost_object_is_approached_again() -> None:
    expert = PickPlaceExpert(NAMES, "butter_1")
    assert expert.act(_scene((0.0, 0.0, 0.185), grasped=False))[6] == -1
    assert expert.phase == "approach"


def test_rotate_quarter_turn() -> None:
    # 90 degrees about z: quaternion (0, 0, sin 45, cos 45); x goes to y, y to -x, z stays.
    quarter = np.array([0, 0, sqrt(0.5), sqrt(0.5)])
    np.testing.assert_allclose(rotate(quarter, np.array([1.0, 2.0, 3.0])), [-2.0, 1.0, 3.0], atol=1e-12)


def test_scene_without_the_object_is_refused() -> None:
    with pytest.raises(TaskError, match="milk_1"):
        PickPlaceExpert(NAMES, "milk_1")


def test_object_without_a_grasp_is_refused() -> None:
    with pytest.raises(TaskError, match="'plate'"):
        PickPlaceExpert(("plate_1", "basket_1"), "plate_1")


def _run(env: LiberoEnv, start: InitialState, noise: float = 0.0) -> int | None:
    """Environment steps to success within LIBERO's limit, or None; noise as in demonstrations."""
    env.reset(start)
    expert = PickPlaceExpert(env.object_names, env.object_names[0])
    rng = np.random.default_rng(start.index)
    for decision in range(env.task.max_env_steps // SIM.action_repeat):
        action = expert.act(env.scene())
        if expert.phase == "approach":
            action[:3] = np.clip(action[:3] + rng.normal(0, noise, 3), -1, 1)
        for step in range(SIM.action_repeat):
            if env.step(action):
                return decision * SIM.action_repeat + step + 1
    return None


@pytest.fixture(scope="module")
def butter() -> Iterator[LiberoEnv]:
    env = LiberoEnv(load_task("libero_object/6"), SIM, resolve_assets(SIM))
    yield env
    env.close()


def test_butter_goes_into_the_basket(butter: LiberoEnv) -> None:
    for start in (InitialState("official", 0), InitialState("sampled", 1)):
        steps = _run(butter, start)
        assert steps is not None
        assert steps < 130


def test_disturbed_approach_recovers(butter: LiberoEnv) -> None:
    assert _run(butter, InitialState("official", 1), noise=0.25) is not None


@pytest.mark.slow
@pytest.mark.parametrize("index", range(10))
def test_every_official_start_of_every_task(index: int) -> None:
    env = LiberoEnv(load_task(f"libero_object/{index}"), SIM, resolve_assets(SIM))
    assert env.object_names[0].rpartition("_")[0] in GRASPS
    missed = [i for i in range(50) if _run(env, InitialState("official", i)) is None]
    env.close()
    assert missed == []


@pytest.mark.slow
def test_disturbed_butter_almost_always_arrives(butter: LiberoEnv) -> None:
    missed = [i for i in range(50) if _run(butter, InitialState("official", i), noise=0.25) is None]
    assert len(missed) <= 2
