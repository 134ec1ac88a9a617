"""The claim of this room: what LIBERO's own code does, bit for bit. It runs beside ours here, so this cannot go stale.

`pytest -m fidelity` runs all of it, about an hour of one core. LIBERO's meshes are taken from beside the repository where
they are, else the primitive set, which covers libero_object alone.
"""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from stages.params import SimParams
from stages.sim.assets import resolve_assets
from stages.sim.env import NO_OP, LiberoEnv
from stages.sim.expert import PickPlaceExpert
from stages.sim.scripts import is_scripted, make_script
from stages.sim.tasks import list_tasks, load_task, official_states
from stages.types import InitialState
from tests.sim.libero_reference import Episode, Record, run_in_libero
from tests.sim.sample import LIBERO_ASSETS, SIM, TASK

pytestmark = pytest.mark.fidelity
PRIMITIVE = SIM.benchmark()
MESHES = PRIMITIVE.model_copy(update={"assets": "libero", "assets_dir": str(LIBERO_ASSETS)})

SUITES = ("libero_spatial", "libero_object", "libero_goal", "libero_10")
SAMPLE_OF_90 = (0, 9, 17, 20, 26, 35, 39, 42, 47, 55, 61, 70, 77, 84)  # all kinds of scenes and goals
TASKS = [task.id for suite in SUITES for task in list_tasks(suite)] + [f"libero_90/{index}" for index in SAMPLE_OF_90]
STARTS = (0, 17, 49)  # official initial states

if not LIBERO_ASSETS.is_dir():
    MESHES, TASKS = PRIMITIVE, [task.id for task in list_tasks("libero_object")]


def random_actions(steps: int, seed: int = 0) -> NDArray[np.float64]:
    """Some leave the rotation at zero, where OSC keeps its old goal; some exceed the range, where it clips."""
    actions = np.random.default_rng(seed).uniform(-1.2, 1.2, (steps, 7))
    actions[::3, 3:6] = 0
    return actions


def run_here(env: LiberoEnv, episode: Episode, start: InitialState | NDArray[np.float64]) -> Record:
    rows: list[tuple[Any, ...]] = []
    images = []
    env.reset(start)
    for step, action in enumerate([None, *episode.actions]):
        if action is not None:
            env.step(action)
        if step <= episode.watched > 0:
            images.append(env.render()[::-1, ::-1])
        rows.append((env.state(), bool(env.scene().success), env.proprio()))
    states, success, proprio = zip(*rows, strict=True)
    return Record(np.stack(states), np.array(success), np.stack(proprio), images)


def assert_same(ours: Record, libero: Record) -> None:
    from robosuite.utils.transform_utils import quat2axisangle

    axis_angles = [quat2axisangle(quat.copy()) for quat in libero.proprio[:, 3:7]]
    proprio = np.concatenate([libero.proprio[:, :3], axis_angles, libero.proprio[:, 7:]], axis=1)
    np.testing.assert_array_equal(ours.states, libero.states)
    np.testing.assert_array_equal(ours.success, libero.success)
    np.testing.assert_array_equal(ours.proprio, proprio.astype(np.float32))
    np.testing.assert_array_equal(ours.images, libero.images)


def compare(sim: SimParams, task_id: str, *, official: tuple[int, ...], steps: int, watched: int, sampled: int) -> None:
    """Random actions from official states and from a sampled one; the first and the last are watched for some steps."""
    states = official_states(load_task(task_id))
    actions = random_actions(steps)
    episodes = [Episode(task_id, 0, states[i], actions, watched if i == official[0] else 0) for i in official]
    episodes.append(Episode(task_id, sampled, None, actions[:watched], watched))
    starts = [*(InitialState("official", index) for index in official), InitialState("sampled", sampled)]
    env = LiberoEnv(load_task(task_id), sim, resolve_assets(sim))
    ours = [run_here(env, episode, start) for episode, start in zip(episodes, starts, strict=True)]
    env.close()
    for mine, theirs in zip(ours, run_in_libero(sim, episodes), strict=True):
        assert_same(mine, theirs)


def test_random_actions_on_primitives() -> None:
    compare(PRIMITIVE, TASK.id, official=(7,), steps=60, watched=4, sampled=3)


def test_a_scripted_success_on_primitives() -> None:
    env = LiberoEnv(TASK, PRIMITIVE, resolve_assets(PRIMITIVE))
    episode = _scripted(env, TASK.id, 3)
    assert run_here(env, episode, InitialState("official", 3)).success[-1]
    assert_same(run_here(env, episode, InitialState("official", 3)), *run_in_libero(PRIMITIVE, [episode]))


def _scripted(env: LiberoEnv, task_id: str, start: int) -> Episode:
    """A scripted expert's actions to the goal, and a few steps beyond."""
    env.reset(InitialState("official", start))
    if is_scripted(env.task):
        script = make_script(env)
        act, hold = script.act, 1
    else:
        expert = PickPlaceExpert(env.object_names, env.object_names[0])
        act, hold = (lambda: expert.act(env.scene())), 4
    actions: list[NDArray[np.float64]] = []
    while not env.scene().success and len(actions) < env.task.max_env_steps:
        actions += [act()] * hold
        for action in actions[-hold:]:
            env.step(action)
    actions += [NO_OP] * 4
    return Episode(task_id, 0, official_states(load_task(task_id))[start], np.stack(actions), watched=0)


@pytest.mark.slow
@pytest.mark.parametrize("task_id", TASKS)
def test_random_actions(task_id: str) -> None:
    compare(MESHES, task_id, official=STARTS, steps=200, watched=6, sampled=3)


@pytest.mark.slow
@pytest.mark.parametrize("task_id", [task_id for task_id in TASKS if not task_id.startswith("libero_90")])
def test_scripted_success(task_id: str) -> None:
    env = LiberoEnv(load_task(task_id), MESHES, resolve_assets(MESHES))
    episodes = [_scripted(env, task_id, start) for start in STARTS[1:]]
    ours = [run_here(env, e, InitialState("official", start)) for e, start in zip(episodes, STARTS[1:], strict=True)]
    env.close()
    assert any(record.success.any() for record in ours)  # later steps may undo it
    for mine, theirs in zip(ours, run_in_libero(MESHES, episodes), strict=True):
        assert_same(mine, theirs)


@pytest.mark.slow
@pytest.mark.parametrize("task_id", [task_id for task_id in TASKS if task_id.startswith("libero_90")])
def test_goal_that_is_nearly_reached(task_id: str) -> None:
    """No script solves these tasks yet, so things are put where they fall, slide or turn into the goal by themselves."""
    sim = MESHES.model_copy(update={"settle_steps": 0})
    env = LiberoEnv(load_task(task_id), sim, resolve_assets(sim))
    state = _nearly_done(env)
    episode = Episode(task_id, 0, state, random_actions(40) * 0.1, watched=0)
    ours = run_here(env, episode, state)
    env.close()
    assert_same(ours, *run_in_libero(sim, [episode]))
    assert ours.success.any(), "the goal was not reached, so it was not compared"


def _nearly_done(env: LiberoEnv) -> NDArray[np.float64]:
    """An official state with everything that LIBERO's goal names a little above, or at the edge of, where it shall be."""
    env.reset(InitialState("official", 0))
    libero, state = env._env, env.state()
    goals = libero.parsed_problem["goal_state"]
    for index, (name, *args) in enumerate(goals):
        if name in ("on", "in"):
            moved, place = args
            where = libero.object_states_dict[place].get_geom_state()["pos"].copy()
            where[2] += 0.06 if name == "on" else 0.0
            if sum(goal[2:] == [place] for goal in goals) > 1:
                where[1] += 0.04 * (-1) ** index  # two go to the same place, side by side
            address = 1 + env.model.joint(libero.get_object(moved).joints[-1]).qposadr[0]
            state[address : address + 3] = where
        else:
            (what,) = args
            part = libero.object_sites_dict.get(what) or libero.get_object(what)
            owner = libero.get_object(getattr(libero.object_states_dict[what], "parent_name", what))
            ranges = owner.object_properties["articulation"][f"default_{name}_ranges"]
            for joint in part.joints:
                state[1 + env.model.joint(joint).qposadr[0]] = np.mean(ranges)
    return state
