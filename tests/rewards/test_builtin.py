"""Built-in rewards of all 40 tasks: what their programs are, and that they reward the way to the goal and no short cut."""

import ast
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from stages.errors import TaskError
from stages.rewards.builtin import JointGoal, Thresholds, goal_program, stage_program, stages_of
from stages.rewards.builtin.plan import sub_goals
from stages.rewards.interface import Context
from stages.rewards.sandbox import check_program, milestone_names
from tests.rewards.builtin_moments import TASKS, context_of, drawn, namespace_of, score, score_each, still

HOLDS = Thresholds()
Moments = dict[str, NDArray[Any]]


@pytest.fixture(params=TASKS)
def task(request: pytest.FixtureRequest) -> tuple[Context, str]:
    context, joints = context_of(request.param)
    return context, goal_program(context, HOLDS, joints)


def test_the_sandbox_admits_the_program(task: tuple[Context, str]) -> None:
    _, source = task
    check_program(source, "reward.py")
    assert milestone_names(source) == namespace_of(source)["MILESTONES"]
    assert max(len(line) for line in source.splitlines()) <= 120
    assert ast.get_docstring(ast.parse(source))


def test_all_at_once_equals_one_by_one(task: tuple[Context, str]) -> None:
    context, source = task
    moments = drawn(context, 200, np.random.default_rng(3))
    for together, apart in zip(score(source, context, moments), score_each(source, context, moments), strict=True):
        np.testing.assert_array_equal(together, apart)


def test_completion_is_clearly_highest_and_rewards_are_constant_within_a_milestone(task: tuple[Context, str]) -> None:
    context, source = task
    if "REWARDS" not in source:
        pytest.skip("Algorithm 2 as printed has three rewards while the object is lifted")
    moments = drawn(context, 3000, np.random.default_rng(4))
    reward, milestone = score(source, context, moments)
    names = namespace_of(source)["MILESTONES"]
    constants = {index: set(reward[milestone == index]) for index in set(milestone)}
    assert all(len(values) == 1 for values in constants.values())
    complete = names.index("complete")
    np.testing.assert_array_equal(milestone == complete, moments["task_success"])
    assert constants[complete].pop() >= 1.3 * reward[~moments["task_success"]].max()
    on_the_way = [constants[index].pop() for index in range(complete) if constants.get(index)]
    assert on_the_way == sorted(set(on_the_way))  # rising milestone by milestone
    assert len(names) == len(namespace_of(source)["REWARDS"])


def _reach(moments: Moments, context: Context, joints: dict[str, JointGoal], goal: int) -> None:
    """Lets one predicate hold, with its joint where it then is."""
    moments["goal_holds"][0, goal] = True
    predicate, name = context.goals[goal][0], context.goals[goal][1]
    joint = joints.get(f"{predicate} {name}")
    if joint is not None:
        moments["joint_pos"][0, context.joint_names.index(joint.joint)] = joint.end
    moments["task_success"][0] = moments["goal_holds"][0].all()


def _way(task_id: str) -> tuple[list[float], list[int], tuple[str, ...]]:
    """Rewards and milestones of an honest way: sub-goal by sub-goal, stage by stage."""
    context, joints = context_of(task_id)
    source = stage_program(context, HOLDS, joints)
    moments = still(context)
    for joint in joints.values():  # shut, off, or, for what has to be closed, open
        moments["joint_pos"][0, context.joint_names.index(joint.joint)] = joint.start
    for goal in context.goals:
        opened = joints.get(f"open {goal[-1]}")
        closes = {joints[key].joint for key in joints if key.startswith("close ")}
        if goal[0] == "in" and opened and opened.joint in closes:
            moments["joint_pos"][0, context.joint_names.index(opened.joint)] = opened.end
    rewards, milestones = [], []

    def note() -> None:
        reward, milestone = score(source, context, moments)
        rewards.append(float(reward[0]))
        milestones.append(int(milestone[0]))

    note()
    for sub_goal in sub_goals(context, joints):
        if sub_goal.joint is not None:
            j, handle = (
                context.joint_names.index(sub_goal.joint.joint),
                context.place_names.index(sub_goal.joint.handle),
            )
            for distance in (0.1, 0.02):
                moments["ee_pos"][0] = moments["place_pos"][0, handle] + (distance, 0, 0)
                note()
            for part in (0.3, 0.6, 0.8, 1.0):
                moments["joint_pos"][0, j] = sub_goal.joint.start + part * (sub_goal.joint.end - sub_goal.joint.start)
                if part == 1.0 and sub_goal.goal is not None:
                    _reach(moments, context, dict(joints), sub_goal.goal)
                note()
            continue
        o = context.object_names.index(sub_goal.target)
        start = moments["object_pos"][0, o].copy()
        place = (
            moments["object_pos"][0, context.object_names.index(sub_goal.place)]
            if sub_goal.at_object
            else moments["place_pos"][0, context.place_names.index(sub_goal.place)]
        )
        for distance in (0.25, 0.03):
            moments["ee_pos"][0] = start + np.array([distance, 0, 0])
            note()
        lift = 0.0 if sub_goal.kind == "pushing" else 0.2
        for part in (0.3, 0.6, 0.8) if sub_goal.kind == "pushing" else (0.0, 1.0):
            side = np.array([0.0, 0.0, lift])
            moments["object_pos"][0, o] = start + part * (place - start) + side
            moments["object_grasped"][0, o] = lift > 0
            moments["object_peak_lift"][0, o] = lift
            moments["ee_pos"][0] = moments["object_pos"][0, o]
            note()
        moments["object_grasped"][0, o] = False
        moments["object_pos"][0, o] = place
        assert sub_goal.goal is not None
        _reach(moments, context, dict(joints), sub_goal.goal)
        moments["ee_pos"][0] = (-5, -5, 1)
        note()
    return rewards, milestones, namespace_of(source)["MILESTONES"]


@pytest.mark.parametrize("task_id", TASKS)
def test_rewards_rise_all_along_an_honest_way(task_id: str) -> None:
    rewards, milestones, names = _way(task_id)
    assert rewards == sorted(rewards)
    assert milestones == sorted(milestones)
    assert names[milestones[-1]] == "complete"
    assert rewards[0] in (-2, 14)  # a goal that holds from the start counts
    assert rewards[-1] == 24 * stages_of(*context_of(task_id)) / 6 - 8


def place_bowl(change: Callable[[Moments], None]) -> float:
    """The reward of a moment of libero_goal/8, the bowl on the table 1 m from the plate unless it is changed."""
    context, joints = context_of("libero_goal/8")
    assert context.object_names[0] == "akita_black_bowl_1"
    moments = still(context)
    change(moments)
    return float(score(goal_program(context, HOLDS, joints), context, moments)[0][0])


def bowl(
    at: tuple[float, float, float], *, held: bool, touched: bool = False, peak: float = 0.2, speed: float = 0.0
) -> Callable[[Moments], None]:
    """The bowl relative to the plate; the hand is at it when it holds or touches it, else far."""

    def change(moments: Moments) -> None:
        context, _ = context_of("libero_goal/8")
        plate = context.object_names.index("plate_1")
        moments["object_pos"][0, 0] = moments["object_pos"][0, plate] + at
        moments["object_initial_pos"][0, 0, 2] = 0.0
        moments["object_grasped"][0, 0] = held
        moments["object_peak_lift"][0, 0] = peak
        moments["object_lin_vel"][0, 0, 2] = -speed
        moments["object_touched"][0, 0] = held or touched
        if held or touched:
            moments["ee_pos"][0] = moments["object_pos"][0, 0]

    return change


@pytest.mark.parametrize(
    ("change", "reward"),
    [
        (bowl((0.5, 0, 0.2), held=True), 8),
        (bowl((0.13, 0, 0.2), held=True), 10),
        (bowl((0.05, 0, 0.2), held=True), 12),
        (bowl((0.05, 0, 0.01), held=True), 12),  # being put down
        (bowl((0.05, 0, 0.01), held=False, speed=0.3), 12),  # let go above the plate
        (bowl((0.05, 0, 0.0), held=False), -4),  # left beside it
        (bowl((0.05, 0, 0.0), held=False, touched=True), 12),  # stands there, the open hand around it
        (bowl((0.5, 0, 0.0), held=False, touched=True), -4),
        (bowl((0.5, 0, 0.1), held=False, speed=0.5), -4),  # falling
        (bowl((0.5, 0, 0.0), held=False), -4),
        (bowl((0.5, 0, 0.0), held=True, peak=0.01), 4),  # held on the table
        (bowl((0.05, 0, 0.0), held=False, peak=0.0), -2),  # pushed there
    ],
)
def test_a_bowl_on_a_plate(change: Callable[[Moments], None], reward: float) -> None:
    assert place_bowl(change) == reward


def test_a_low_place_is_no_drop() -> None:
    """The bowl starts on the cabinet, so on its way down to the plate it is lower than it stood."""
    context, joints = context_of("libero_spatial/9")
    moments = still(context)
    plate = context.object_names.index("plate_1")
    moments["object_initial_pos"][0, 0, 2] = 0.3
    moments["object_pos"][0, 0] = moments["object_pos"][0, plate] + (0.02, 0, 0.05)
    moments["object_grasped"][0, 0], moments["object_peak_lift"][0, 0] = True, 0.06
    assert score(goal_program(context, HOLDS, joints), context, moments)[0] == 12


def _state(task_id: str, **joints: float) -> tuple[Context, str, Moments]:
    context, goals = context_of(task_id)
    moments = still(context)
    for name, position in joints.items():
        moments["joint_pos"][0, context.joint_names.index(name)] = position
    return context, goal_program(context, HOLDS, goals), moments


def test_a_drawer_shut_too_early_costs() -> None:
    drawer = "white_cabinet_1_bottom_level"
    context, source, moments = _state("libero_10/3", **{drawer: -0.15})
    assert score(source, context, moments)[0] == -2
    moments["joint_pos"][:] = 0.001
    moments["goal_holds"][0, 0] = True  # closed, and the bowl is not in it
    assert score(source, context, moments)[0] == -4
    moments["goal_holds"][:] = moments["task_success"][:] = True
    assert score(source, context, moments)[0] == 40


def test_a_half_shut_microwave_does_not_pay_before_the_mug_is_in() -> None:
    context, source, moments = _state("libero_10/9", microwave_1_microjoint=-0.7)
    moments["ee_pos"][0] = moments["place_pos"][0, context.place_names.index("microwave_1_handle")]
    assert score(source, context, moments)[0] == -2
    moments["goal_holds"][0, 0] = True
    assert score(source, context, moments)[0] > 16


def test_a_drawer_need_not_stay_open_once_the_bowl_is_in_it() -> None:
    context, source, moments = _state("libero_goal/3", wooden_cabinet_1_top_level=-0.15)
    assert score(source, context, moments)[0] == 14
    moments["joint_pos"][:] = 0.0
    assert score(source, context, moments)[0] == -2
    moments["goal_holds"][:] = moments["task_success"][:] = True
    assert score(source, context, moments)[0] == 40


def test_losing_a_reached_sub_goal_costs() -> None:
    context, source, moments = _state("libero_10/0")
    moments["goal_holds"][0, 0] = True
    reached = score(source, context, moments)[0]
    moments["goal_holds"][0, 0] = False
    assert reached - score(source, context, moments)[0] == 16


def test_a_drop_counts_unless_the_other_object_is_carried() -> None:
    context, source, moments = _state("libero_10/0")
    soup, sauce = (context.object_names.index(goal[1]) for goal in context.goals)
    moments["object_peak_lift"][0, soup] = 0.2
    assert score(source, context, moments)[0] == -4
    moments["ee_pos"][0] = moments["object_pos"][0, sauce]
    assert score(source, context, moments)[0] == -4  # at the other one
    moments["object_pos"][0, sauce, 2] += 0.1
    moments["object_grasped"][0, sauce], moments["object_peak_lift"][0, sauce] = True, 0.1
    assert score(source, context, moments)[0] == 8


@pytest.mark.parametrize(("part", "reward"), [(-0.2, -4), (0.0, -2), (0.3, 8), (0.6, 10), (0.9, 12)])
def test_a_pushed_plate(part: float, reward: float) -> None:
    context, source, moments = _state("libero_goal/5")
    plate = context.object_names.index("plate_1")
    way = moments["place_pos"][0, 0] - moments["object_initial_pos"][0, plate]
    moments["object_pos"][0, plate] += part * way
    assert score(source, context, moments)[0] == reward


# Episodes of 70 decisions. A success ends an episode, and its last reward counts for the rest.
PROBES = {
    "hover over the plate": lambda m: m.update(ee_pos=m["object_pos"][:, 3] + (0, 0, 0.1)),
    "hover over the bowl": lambda m: m.update(ee_pos=m["object_pos"][:, 0].copy()),
    "hold it above the plate for ever": bowl((0.0, 0, 0.2), held=True),
    "push it to the plate": bowl((0.05, 0, 0.0), held=False, peak=0.0),
    "leave it beside the plate": bowl((0.09, 0, 0.0), held=False),
}


@pytest.mark.parametrize("probe", PROBES.values(), ids=PROBES)
def test_no_short_cut_beats_a_late_success(probe: Callable[[Moments], None]) -> None:
    levels = [-2.0] * 10 + [2.0] * 5 + [4.0] * 10 + [8.0] * 10 + [10.0] * 5 + [12.0] * 10 + [16.0] * 20
    approach = levels[:25]
    assert sum(levels) > sum(approach) + 45 * place_bowl(probe)


def test_dropping_and_grasping_again_does_not_pay() -> None:
    held, dropped = place_bowl(bowl((0.05, 0, 0.2), held=True)), place_bowl(bowl((0.05, 0, 0.0), held=False))
    assert (held + dropped) / 2 < held < 16


@pytest.mark.parametrize(
    ("goals", "message"),
    [
        ((("up", "akita_black_bowl_1"),), "'up'"),
        ((("on", "cup_1", "plate_1"),), "'cup_1'"),
        ((("on", "akita_black_bowl_1", "shelf_1"),), "'shelf_1'"),
        ((("open", "drawer_1"),), "open drawer_1"),
    ],
)
def test_a_goal_that_is_not_known_is_refused(goals: tuple[tuple[str, ...], ...], message: str) -> None:
    context, _ = context_of("libero_goal/8")
    other = Context("libero_goal/8", context.object_names, (), (), (), goals, 300)
    with pytest.raises(TaskError, match=message):
        goal_program(other, HOLDS, {})
