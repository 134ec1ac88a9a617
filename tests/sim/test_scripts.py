"""The scripts of the suites beyond libero_object, in the real simulator with LIBERO's own collision shapes."""

import numpy as np
import pytest
from numpy.typing import NDArray

from stages.errors import TaskError
from stages.sim.assets import resolve_assets
from stages.sim.env import NO_OP, LiberoEnv
from stages.sim.hand import pointing, rotation_about, rotation_vector
from stages.sim.scripts import SUITES, is_scripted, make_script
from stages.sim.tasks import list_tasks, load_task
from stages.types import InitialState
from tests.sim.sample import LIBERO_ASSETS, SIM, TASK

MESHES = SIM.model_copy(update={"assets": "libero", "assets_dir": str(LIBERO_ASSETS)})
STARTS = 10
AT_LEAST = {"libero_spatial/4": 8}
"""Successes of STARTS where more than one failure is allowed. Every task was measured at ten of ten or nine of ten."""

needs_assets = pytest.mark.skipif(not LIBERO_ASSETS.is_dir(), reason="the scripts' suites need LIBERO's own meshes")


def make_env(task_id: str) -> LiberoEnv:
    return LiberoEnv(load_task(task_id), MESHES, resolve_assets(MESHES))


def play(env: LiberoEnv, start: int) -> tuple[NDArray[np.float64], bool]:
    """The actions of a script within the suite's step limit, (T, 7), and whether they reached LIBERO's goal."""
    env.reset(InitialState("official", start))
    script = make_script(env)
    actions = []
    for _ in range(env.task.max_env_steps):
        actions.append(script.act())
        if env.step(actions[-1]):
            return np.stack(actions), True
    return np.stack(actions), False


@needs_assets
@pytest.mark.parametrize("task_id", ["libero_spatial/0", "libero_goal/7"])
def test_a_script_succeeds_and_repeats_itself(task_id: str) -> None:
    env = make_env(task_id)
    actions, success = play(env, 1)
    again, _ = play(env, 1)
    assert success
    assert np.abs(actions).max() <= 1
    np.testing.assert_array_equal(actions, again)
    env.close()


@needs_assets
def test_a_script_that_has_nothing_left_to_do_stands_still() -> None:
    env = make_env("libero_goal/7")
    env.reset(InitialState("official", 0))
    env.data.joint("flat_stove_1_button").qpos = 1.0
    env.step(NO_OP)  # LIBERO judges what a step has computed
    np.testing.assert_array_equal(make_script(env).act(), NO_OP)
    env.close()


def test_a_task_without_a_script_is_refused() -> None:
    env = LiberoEnv(TASK, SIM, resolve_assets(SIM))
    with pytest.raises(TaskError, match="no script for libero_object/6; there are scripts for libero_spatial"):
        make_script(env)
    env.close()


def test_suites_are_scripted_as_a_whole() -> None:
    assert all(is_scripted(task) for suite in SUITES for task in list_tasks(suite))
    assert not is_scripted(TASK)


def test_fingers_point_down_and_tilt_where_asked() -> None:
    np.testing.assert_allclose(pointing(np.pi / 2), [[0, 1, 0], [1, 0, 0], [0, 0, -1]], atol=1e-12)
    np.testing.assert_allclose(pointing(0.4), pointing(0.4 + np.pi), atol=1e-12)  # the same grip
    np.testing.assert_allclose(pointing(0.0, np.pi / 2, towards=np.pi / 2)[:, 2], [0, 1, 0], atol=1e-12)
    np.testing.assert_allclose(
        pointing(0.0, np.pi / 4, towards=0.0)[:, 2], np.array([1, 0, -1]) / np.sqrt(2), atol=1e-12
    )


def test_rotation_vector_inverts_rotation_about() -> None:
    axis = np.array([2.0, -1.0, 2.0]) / 3
    np.testing.assert_allclose(rotation_vector(rotation_about(axis, 1.3)), 1.3 * axis, atol=1e-12)


@needs_assets
@pytest.mark.slow
@pytest.mark.parametrize("task_id", [task.id for suite in SUITES for task in list_tasks(suite)])
def test_scripts_succeed_from_official_states(task_id: str) -> None:
    env = make_env(task_id)
    episodes = [play(env, start) for start in range(STARTS)]
    steps = [len(actions) for actions, success in episodes if success]
    print(f"{task_id:18} {len(steps):2} of {STARTS}, {min(steps, default=0)} to {max(steps, default=0)} steps")
    assert len(steps) >= AT_LEAST.get(task_id, STARTS - 1)
    env.close()
