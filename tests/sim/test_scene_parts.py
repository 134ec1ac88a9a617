"""What a scene says beyond poses: velocities, contacts, joints, places and the goal, against MuJoCo's and LIBERO's own."""

from collections.abc import Iterator

import mujoco
import numpy as np
import pytest

from stages.sim.assets import resolve_assets
from stages.sim.env import NO_OP, LiberoEnv
from stages.sim.goals import parse_goal
from stages.sim.tasks import load_task
from stages.types import InitialState
from tests.sim.sample import LIBERO_ASSETS, SIM, TASK

CAN = "tomato_sauce_1"


@pytest.fixture(scope="module")
def env() -> Iterator[LiberoEnv]:
    env = LiberoEnv(TASK, SIM, resolve_assets(SIM))
    yield env
    env.close()


def at(env: LiberoEnv, name: str) -> tuple[slice, slice]:
    """Where an object's pose (7) and velocity (6) lie in a state, whose first 9 joints are the robot's."""
    index = env.object_names.index(name)
    pose, velocity = 1 + 9 + 7 * index, 1 + env.model.nq + 9 + 6 * index
    return slice(pose, pose + 7), slice(velocity, velocity + 6)


def test_velocities_are_those_of_the_world(env: LiberoEnv) -> None:
    env.reset(InitialState("official", 0))
    state = env.state()
    pose, velocity = at(env, CAN)
    state[pose] = [0.0, 0.0, 0.5, 0.5, -0.1, 0.7, 0.5]  # MuJoCo makes a unit quaternion of it
    state[velocity] = [0.1, -0.2, 0.3, 1.0, 2.0, -3.0]
    env.set_state(state)
    scene, expected, can = env.scene(), np.zeros(6), env.object_names.index(CAN)
    body = env.model.body(f"{CAN}_main").id
    mujoco.mj_objectVelocity(env.model, env.data, mujoco.mjtObj.mjOBJ_XBODY, body, expected, 0)
    np.testing.assert_allclose(scene.object_ang_vel[can], expected[:3], atol=1e-12)
    np.testing.assert_allclose(scene.object_lin_vel[can], expected[3:], atol=1e-12)
    assert np.abs(expected[:3] - state[velocity][3:]).max() > 0.1  # MuJoCo's own state has it in the body's frame


def test_touched_needs_no_grasp(env: LiberoEnv) -> None:
    """The can across both fingers, across one, at the back of the hand, and away."""
    env.reset(InitialState("official", 0))
    state = env.state()
    pose, _ = at(env, CAN)
    state[8:10] = [0.02, -0.02]
    found = []
    for offset in ([0, 0, 0], [0, 0.04, 0], [0, 0, 0.12], [0, 0, -0.3]):
        state[pose.start : pose.start + 3] = env.scene().ee_pos + np.array(offset)
        env.set_state(state)
        scene, can = env.scene(), env.object_names.index(CAN)
        assert scene.touched.sum() == scene.touched[can]  # no other object
        found.append((bool(scene.touched[can]), bool(scene.grasped[can])))
    assert found == [(True, True), (True, False), (True, False), (False, False)]


def test_the_goal_is_judged_by_predicate(env: LiberoEnv) -> None:
    env.reset(InitialState("official", 0))
    assert env.goals == parse_goal(TASK)
    state = env.state()
    butter, basket = (at(env, name)[0] for name in ("butter_1", "basket_1"))
    before = env.snapshot()
    assert not env.scene().goal.any()
    state[butter.start : butter.start + 3] = state[basket.start : basket.start + 3]
    env.set_state(state)
    scene = env.scene()
    assert scene.goal.tolist() == [True] and scene.success
    env.restore(before)
    assert not env.scene().goal.any()


def test_a_place_is_where_its_site_is(env: LiberoEnv) -> None:
    env.reset(InitialState("sampled", 1))
    assert env.place_names == ("basket_1_contain_region",)
    np.testing.assert_allclose(env.scene().place_pos[0], env.data.site("basket_1_contain_region").xpos, atol=1e-12)


def test_a_scene_changes_nothing(env: LiberoEnv) -> None:
    env.reset(InitialState("official", 0))
    states = []
    for looks in (0, 3):
        env.reset(InitialState("official", 0))
        for _ in range(4):
            for _ in range(looks):
                env.scene()
            env.step(NO_OP)
        states.append(env.state())
    np.testing.assert_array_equal(*states)


CABINET = {
    f"wooden_cabinet_1_{level}_handle": f"wooden_cabinet_1_cabinet_{level}" for level in ("top", "middle", "bottom")
}


@pytest.mark.slow
@pytest.mark.skipif(not LIBERO_ASSETS.is_dir(), reason="needs LIBERO's own meshes")
@pytest.mark.parametrize(
    ("task", "places"),
    [
        ("libero_goal/3", CABINET),
        ("libero_10/9", {"microwave_1_handle": "microwave_1_microdoorroot"}),
        ("libero_goal/7", {"flat_stove_1_knob": "flat_stove_1_button"}),
    ],
)
def test_handles_move_with_their_joints(task: str, places: dict[str, str]) -> None:
    """A handle stays at a piece of what it opens, whether that is shut or open."""
    sim = SIM.model_copy(update={"assets": "libero", "assets_dir": str(LIBERO_ASSETS)})
    env = LiberoEnv(load_task(task), sim, resolve_assets(sim))
    env.reset(InitialState("sampled", 3))
    assert env.goals == parse_goal(env.task)
    model, data, found = env.model, env.data, []
    for end in (0, 1):
        state = env.state()
        for name, ends in zip(env.joint_names, env.joint_ranges, strict=True):
            assert ends == tuple(model.joint(name).range)
            state[1 + model.joint(name).qposadr[0]] = ends[end]
        env.set_state(state)
        scene = env.scene()
        assert scene.joint_pos.tolist() == [ends[end] for ends in env.joint_ranges]
        for name, body in places.items():
            at = scene.place_pos[env.place_names.index(name)]
            geoms = np.flatnonzero(model.geom_bodyid == model.body(body).id)
            assert np.linalg.norm(data.geom_xpos[geoms] - at, axis=1).min() < 0.02
            found.append(at)
    shut, opened = np.split(np.array(found), 2)
    if task != "libero_goal/7":  # a knob turns on its place
        assert (np.linalg.norm(shut - opened, axis=1) > 0.1).all()
    env.close()
