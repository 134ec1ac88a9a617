"""One environment: scenes and physics are real, the assets are the project's primitives. See test_fidelity too."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from numpy.typing import NDArray

from stages.errors import SimulatorError, TaskError
from stages.sim.assets import Assets, resolve_assets
from stages.sim.env import LiberoEnv
from stages.sim.tasks import official_states, task_object_names
from stages.types import InitialState
from tests.sim.sample import SIM, TASK


@pytest.fixture(scope="module")
def env() -> Iterator[LiberoEnv]:
    env = LiberoEnv(TASK, SIM, resolve_assets(SIM))
    yield env
    env.close()


@pytest.fixture(scope="module")
def reference(env: LiberoEnv) -> Any:
    """LIBERO's own environment."""
    from libero.libero.envs.env_wrapper import ControlEnv

    reference = ControlEnv(str(TASK.bddl_file), has_offscreen_renderer=False, use_camera_obs=False)
    reference.seed(0)
    reference.reset()
    return reference


ROOT = Path(__file__).parents[2]


def _random_actions(steps: int, seed: int = 0) -> NDArray[np.float64]:
    """Some leave the rotation at zero, where OSC keeps its old goal; some exceed the range, where it clips."""
    actions = np.random.default_rng(seed).uniform(-1.2, 1.2, (steps, 7))
    actions[::3, 3:6] = 0
    return actions


def _states(env: LiberoEnv, actions: NDArray[np.float64]) -> NDArray[np.float64]:
    states = []
    for action in actions:
        env.step(action)
        states.append(env.state())
    return np.stack(states)


FRESH = """
import sys
from tests.sim.test_env import *
from tests.sim.test_env import _random_actions, _states
env = LiberoEnv(TASK, SIM, resolve_assets(SIM))
env.reset(InitialState(sys.argv[1], 3))
sys.stdout.buffer.write(np.stack([env.state(), *_states(env, _random_actions(30))]).tobytes())
"""


@pytest.mark.parametrize("source", ["official", "sampled"])
def test_an_episode_does_not_depend_on_what_was_before(env: LiberoEnv, source: Literal["official", "sampled"]) -> None:
    env.reset(InitialState("sampled", 9))
    _states(env, np.tile([0.3, -0.4, -1, 0.2, 0.1, 0.5, 1], (25, 1)))  # hand down and turned, fingers closed
    env.reset(InitialState(source, 3))
    used = np.stack([env.state(), *_states(env, _random_actions(30))])
    command = [sys.executable, "-c", FRESH, source]
    done = subprocess.run(command, capture_output=True, check=True, cwd=ROOT)
    np.testing.assert_array_equal(used, np.frombuffer(done.stdout).reshape(used.shape))


def test_images_do_not_depend_on_what_was_before(env: LiberoEnv) -> None:
    env.reset(InitialState("official", 3))
    image = env.render()
    env.reset(InitialState("sampled", 1))
    env.render(96)
    env.reset(InitialState("official", 3))
    np.testing.assert_array_equal(env.render(), image)


def test_resets_leave_numpys_stream_alone(env: LiberoEnv) -> None:
    np.random.seed(5)
    expected = np.random.random()
    np.random.seed(5)
    env.reset(InitialState("sampled", 1))
    assert np.random.random() == expected


def test_sampled_starts_differ_and_rest(env: LiberoEnv) -> None:
    official = official_states(TASK)
    seen = []
    for index in range(4):
        env.reset(InitialState("sampled", index))
        seen.append(env.scene().object_pos)
        objects = slice(-6 * len(env.object_names), None)
        assert np.abs(env.state()[objects]).max() < 0.05  # m/s and rad/s
        assert not env.scene().success
        assert not any(np.allclose(env.state()[1:60], state[1:60], atol=1e-4) for state in official)
    gaps = [np.abs(a - b).max() for i, a in enumerate(seen) for b in seen[:i]]
    assert min(gaps) > 0.005  # m


def test_sampled_starts_are_drawn_as_the_official_ones(env: LiberoEnv) -> None:
    """Those have noise on the arm's joints, and their hand is straightened before the episode begins."""
    starts = [(source, index) for source in ("official", "sampled") for index in range(12)]
    hands = []
    for source, index in starts:
        env.reset(InitialState(source, index))  # type: ignore[arg-type]
        hands.append(env.proprio()[:6])
    official, sampled = np.split(np.array(hands), 2)
    spread = sampled.std(axis=0) / official.std(axis=0)
    assert (spread > 0.4).all() and (spread < 2.5).all()  # 12 draws; without noise 0, with the hand left askew 20
    still = LiberoEnv(TASK, SIM.model_copy(update={"arm_noise": 0.0}), resolve_assets(SIM))
    alike, places = [], []
    for seed in (0, 1):
        still.reset(InitialState("sampled", seed))
        alike.append(still.proprio()[:6])
        places.append(still.scene().object_pos)
        env.reset(InitialState("sampled", seed))
        np.testing.assert_allclose(env.scene().object_pos, places[-1], atol=1e-4)  # the same objects, noise or not
    still.close()
    np.testing.assert_allclose(alike[0], alike[1], atol=1e-6)
    assert np.abs(places[0] - places[1]).max() > 0.005


def test_a_state_can_be_replayed(env: LiberoEnv) -> None:
    env.reset(InitialState("official", 0))
    states = _states(env, _random_actions(5))
    image, scene = env.render(), env.scene()
    env.reset(InitialState("sampled", 2))
    env.set_state(states[-1])
    np.testing.assert_array_equal(env.render(), image)
    np.testing.assert_array_equal(env.scene().object_pos, scene.object_pos)
    env.reset(states[-1])
    np.testing.assert_array_equal(env.state(), states[-1])


@pytest.mark.parametrize("start", [InitialState("official", 0), InitialState("sampled", 5)], ids=str)
@pytest.mark.parametrize("before", [0, 7])
@pytest.mark.parametrize("observe", ["libero", "latest"])
def test_forks_with_the_same_actions_give_the_same(
    env: LiberoEnv, start: InitialState, before: int, observe: Literal["libero", "latest"]
) -> None:
    """A fork goes on in an environment that has seen another start, another fixture and another end of its episode."""
    actions = _random_actions(before + 12)
    other = LiberoEnv(TASK, SIM.model_copy(update={"observe": observe}), resolve_assets(SIM))
    here = other if observe == "libero" else env
    here.reset(start)
    for action in actions[:before]:
        here.step(action)
    snapshot, image, success = here.snapshot(), here.render(), bool(here.scene().success)
    expected, proprio = _states(here, actions[before:]), here.proprio()
    other.reset(InitialState("sampled", 9))
    _states(other, -actions[:5])
    other.restore(snapshot)
    np.testing.assert_array_equal(other.render(), image)
    assert bool(other.scene().success) == success
    np.testing.assert_array_equal(_states(other, actions[before:]), expected)
    np.testing.assert_array_equal(other.proprio(), proprio)
    other.close()


def test_lean_physics_is_the_same_physics(env: LiberoEnv) -> None:
    """Rounding apart: 1e-14 on the arm, and what a solver's tolerance leaves open (1e-8) on things at rest."""
    lean = LiberoEnv(TASK, SIM.model_copy(update={"physics": "lean"}), resolve_assets(SIM))
    actions = _random_actions(40)
    states = []
    for each in (env, lean):
        each.reset(InitialState("official", 7))
        states.append(_states(each, actions))
    apart = np.abs(states[0] - states[1])
    assert 0 < apart[:, 1:10].max() < 1e-9
    assert apart.max() < 1e-5
    lean.close()


def test_scene_proprio_and_image(env: LiberoEnv) -> None:
    env.reset(InitialState("official", 0))
    scene, proprio, image = env.scene(), env.proprio(), env.render()
    assert env.object_names == task_object_names(TASK)
    assert scene.object_pos.shape == (7, 3)
    assert scene.object_quat.shape == (7, 4)
    assert not scene.grasped.any()
    np.testing.assert_allclose(np.linalg.norm(scene.object_quat, axis=1), 1)
    np.testing.assert_allclose(proprio[:3], scene.ee_pos, rtol=1e-6)
    np.testing.assert_allclose(proprio[6:], scene.gripper_qpos, rtol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(proprio[3:6]), np.pi, atol=0.1)  # the hand points down: half a turn
    assert proprio.dtype == np.float32
    assert (image.shape, image.dtype) == ((48, 48, 3), np.uint8)
    assert env.render(64, "robot0_eye_in_hand").shape == (64, 64, 3)


def test_the_image_is_upright_and_mirrored(env: LiberoEnv) -> None:
    """The camera faces the robot: the base is at the top, and a basket at the robot's left (y > 0) is at the left."""
    env.reset(InitialState("official", 0))
    state = env.state()
    with_basket = env.render(128).astype(int)
    basket = 1 + 9 + 7 * env.object_names.index("basket_1")
    assert state[basket + 1] > 0.2
    state[basket : basket + 3] = [9, 9, 0]
    env.set_state(state)
    rows, columns = np.nonzero(np.abs(env.render(128).astype(int) - with_basket).sum(axis=2) > 60)
    assert columns.mean() < 50
    assert 30 < rows.mean() < 100


def test_success_is_liberos_predicate(env: LiberoEnv, reference: Any) -> None:
    """Butter in the basket, on its rim, and beside it, judged by both."""
    env.reset(InitialState("official", 0))
    state = env.state()
    butter, basket = (1 + 9 + 7 * env.object_names.index(name) for name in ("butter_1", "basket_1"))
    verdicts = []
    for offset in ([0, 0, 0.0], [0.0, 0.0, 0.3], [0.2, 0, 0], [0.03, -0.03, 0.02]):
        state[butter : butter + 3] = state[basket : basket + 3] + offset
        env.set_state(state)
        reference.set_init_state(state)
        assert bool(env.scene().success) == reference.check_success()
        verdicts.append(bool(env.scene().success))
    assert verdicts == [True, False, False, True]


def test_grasped_needs_both_fingers(env: LiberoEnv) -> None:
    """The fingers of 4 cm opening stand in a can of 6.6 cm; moved along their axis (world y), it leaves one of them."""
    env.reset(InitialState("official", 0))
    state = env.state()
    can = env.object_names.index("tomato_sauce_1")
    position = slice(1 + 9 + 7 * can, 1 + 9 + 7 * can + 3)
    state[8:10] = [0.02, -0.02]
    grasped = {}
    for offset in (0.0, 0.04, -0.04):
        state[position] = env.scene().ee_pos + np.array([0, offset, 0])
        env.set_state(state)
        grasped[offset] = env.scene().grasped.tolist()
    assert grasped[0.0] == [name == "tomato_sauce_1" for name in env.object_names]
    assert not any(grasped[0.04])
    assert not any(grasped[-0.04])


def test_a_closed_environment_lets_go_of_its_model() -> None:
    """LIBERO's meshes are 170 MB a model; a hundred environments, one after the other, must fit."""
    env = LiberoEnv(TASK, SIM, resolve_assets(SIM))
    env.reset(InitialState("official", 0))
    env.render()
    model, data = env.model, env.data
    env.close()
    env.close()
    assert sys.getrefcount(model) <= 3  # this name, the call's argument, and `data`, which belongs to it
    assert sys.getrefcount(data) == 2
    with pytest.raises(SimulatorError, match="before its first reset"):
        env.step(np.zeros(7))


def test_assets_that_are_not_there(env: LiberoEnv, tmp_path: Path) -> None:
    with pytest.raises(SimulatorError, match=r"cannot be built.*--set sim\.assets=primitive"):
        LiberoEnv(TASK, SIM, Assets("libero", tmp_path, "none"))


def test_bad_requests(env: LiberoEnv) -> None:
    with pytest.raises(TaskError, match="official/50; libero_object/6 has 50, 0 to 49"):
        env.reset(InitialState("official", 50))
    with pytest.raises(SimulatorError, match=r"has shape \(110,\), found \(92,\)"):
        env.reset(np.zeros(92))
    env.reset(InitialState("official", 0))
    with pytest.raises(SimulatorError, match="expected 7 finite numbers"):
        env.step(np.full(7, np.nan))
    with pytest.raises(SimulatorError, match="expected 7 finite numbers"):
        env.step(np.zeros(6))
    with pytest.raises(SimulatorError, match=r"there is no camera 'agent'.* it has frontview, birdview, agentview"):
        env.render(camera="agent")
    with pytest.raises(SimulatorError, match="a snapshot of libero_object/6 has shape"):
        env.restore(env.snapshot()[1:])
