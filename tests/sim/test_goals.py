"""What LIBERO's tasks ask for, and of which joints, read from its files."""

from dataclasses import replace
from pathlib import Path

import pytest

from stages.errors import TaskError
from stages.sim.assets import resolve_assets
from stages.sim.env import LiberoEnv
from stages.sim.goals import parse_goal
from stages.sim.joint_goals import JointGoal, joint_goals
from stages.sim.tasks import SUITES, list_tasks, load_task
from tests.sim.sample import LIBERO_ASSETS, SIM


@pytest.mark.parametrize(
    ("task", "goal"),
    [
        ("libero_object/6", (("in", "butter_1", "basket_1_contain_region"),)),
        ("libero_goal/7", (("turnon", "flat_stove_1"),)),
        (
            "libero_10/3",
            (
                ("close", "white_cabinet_1_bottom_region"),
                ("in", "akita_black_bowl_1", "white_cabinet_1_bottom_region"),
            ),
        ),
    ],
)
def test_goal(task: str, goal: tuple[tuple[str, ...], ...]) -> None:
    assert parse_goal(load_task(task)) == goal


def test_every_task_has_a_goal_and_known_joints() -> None:
    for suite in SUITES:
        for task in list_tasks(suite):
            goals = parse_goal(task)
            assert {goal[0] for goal in goals} <= {"in", "on", "open", "close", "turnon", "turnoff"}
            assert all(goal.start != goal.end for goal in joint_goals(goals).values())


@pytest.mark.parametrize(
    ("text", "goals"),
    [
        ("(define (:goal (On a_1 b_1)))", (("on", "a_1", "b_1"),)),
        ("(:goal (And (Open a_1) ; as said\n (Close b_1)))", (("open", "a_1"), ("close", "b_1"))),
    ],
)
def test_forms_of_a_goal(text: str, goals: tuple[tuple[str, ...], ...], tmp_path: Path) -> None:
    file = tmp_path / "task.bddl"
    file.write_text(text)
    assert parse_goal(replace(load_task("libero_goal/0"), bddl_file=file)) == goals


@pytest.mark.parametrize(
    "text", ["(define (:init (On a b)))", "(:goal (And (On a b)", "(:goal (Or (On a b) (On a c)))", "(:goal (And))", ""]
)
def test_a_goal_that_is_not_understood(text: str, tmp_path: Path) -> None:
    file = tmp_path / "task.bddl"
    file.write_text(text)
    with pytest.raises(TaskError, match="libero_goal/0"):
        parse_goal(replace(load_task("libero_goal/0"), bddl_file=file))


@pytest.mark.parametrize(
    ("goal", "key", "expected"),
    [
        (
            ("open", "wooden_cabinet_1_middle_region"),
            "open wooden_cabinet_1_middle_region",
            JointGoal("wooden_cabinet_1_middle_level", "wooden_cabinet_1_middle_handle", 0.0, -0.14),
        ),
        (
            ("close", "microwave_1"),
            "close microwave_1",
            JointGoal("microwave_1_microjoint", "microwave_1_handle", -1.3, -0.005),
        ),
        (
            ("turnon", "flat_stove_1"),
            "turnon flat_stove_1",
            JointGoal("flat_stove_1_button", "flat_stove_1_knob", 0.0, 0.5),
        ),
        (
            ("turnoff", "flat_stove_1"),
            "turnoff flat_stove_1",
            JointGoal("flat_stove_1_button", "flat_stove_1_knob", 0.5, 0.0),
        ),
        (
            ("in", "bowl_1", "white_cabinet_2_top_region"),
            "open white_cabinet_2_top_region",
            JointGoal("white_cabinet_2_top_level", "white_cabinet_2_top_handle", 0.0, -0.14),
        ),
    ],
)
def test_positions_of_joints(goal: tuple[str, ...], key: str, expected: JointGoal) -> None:
    assert joint_goals([goal]) == {key: expected}


def test_what_only_stands_on_a_cabinet_asks_for_no_joint() -> None:
    assert (
        joint_goals([("on", "bowl_1", "wooden_cabinet_1_top_side"), ("in", "butter_1", "basket_1_contain_region")])
        == {}
    )


def test_a_fixture_without_a_known_joint() -> None:
    with pytest.raises(TaskError, match="basin_faucet_1"):
        joint_goals([("turnon", "basin_faucet_1")])


@pytest.mark.slow
@pytest.mark.skipif(not LIBERO_ASSETS.is_dir(), reason="no LIBERO assets here")
@pytest.mark.parametrize("task", ["libero_goal/3", "libero_goal/7", "libero_10/3", "libero_10/9"])
def test_names_and_positions_are_those_of_the_scene(task: str) -> None:
    sim = SIM.model_copy(update={"assets": "libero", "assets_dir": str(LIBERO_ASSETS)})
    env = LiberoEnv(load_task(task), sim, resolve_assets(sim))
    assert env.goals == parse_goal(env.task)
    for key, goal in joint_goals(env.goals).items():
        assert goal.joint in env.joint_names
        assert goal.handle in env.place_names
        predicate, name = key.removesuffix("_heating_region").split()  # LIBERO asks the microwave, not what is in it
        address = env.model.joint(goal.joint).qposadr[0]
        for nudge, holds in ((-1e-4, False), (1e-4, True)):
            env.data.qpos[address] = goal.end + nudge * (1 if goal.end > goal.start else -1)
            assert env._env._eval_predicate([predicate, name]) == holds
    env.close()
