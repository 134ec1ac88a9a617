"""A task's goal -> the text of its reward program."""

from collections.abc import Mapping

from stages.rewards.builtin.basket import basket_program
from stages.rewards.builtin.plan import BASKET, JointGoal, sub_goals
from stages.rewards.builtin.staged import staged_program
from stages.rewards.builtin.thresholds import Thresholds
from stages.rewards.interface import Context


def goal_program(context: Context, thresholds: Thresholds, joint_goals: Mapping[str, JointGoal]) -> str:
    """The source of a vectorised program that rewards the way to a task's goal, milestone by milestone.

    One object that goes into a basket gets the paper's Algorithm 2 as it is printed; any other goal of in, on, open, close,
    turnon and turnoff gets its stages for each sub-goal.

    Args:
        joint_goals: see `sub_goals`.

    Raises:
        TaskError: the goal has a predicate that the built-in rewards do not know, or names what the scene does not have.
    """
    goals = sub_goals(context, joint_goals)
    if len(goals) == 1 and goals[0].place.startswith(f"{BASKET}_"):
        return basket_program(context.task, goals[0].target, goals[0].place, thresholds)
    return staged_program(context.task, goals, thresholds)
