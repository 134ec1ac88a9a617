"""What a task's goal asks for, one sub-goal after the other, before any text is written."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

from stages.errors import TaskError
from stages.rewards.interface import Context

Kind = Literal["placing", "pushing", "moving"]

GRIPS = {
    "akita_black_bowl": (0.036, 0.047),
    "black_book": (0.110, 0.012),
    "moka_pot": (0.075, 0.0),
    "plate": (0.0, 0.1),
    "porcelain_mug": (0.089, 0.057),
    "red_coffee_mug": (0.089, 0.057),
    "white_bowl": (0.036, 0.047),
    "white_yellow_mug": (0.080, 0.066),
    "wine_bottle": (0.120, 0.0),
}
"""Where a hand grips an object, by category: height above its origin, and distance from its axis, in metres.

A bowl is held by its rim and a bottle by its neck, where the hand is farther from the origin than `Thresholds.near`. What is
missing here is gripped at its origin."""

PUSHED = ("plate",)
"""Categories that a gripper cannot lift from above."""

BASKET = "basket"


class JointGoal(Protocol):
    """What a predicate asks of a joint; positions in metres or radians. `stages.sim.joint_goals` reads it from LIBERO."""

    @property
    def joint(self) -> str:
        """Its name among the context's joints."""

    @property
    def handle(self) -> str:
        """Where a hand takes hold of it, a name among the context's places."""

    @property
    def start(self) -> float:
        """Up to here the opposite holds."""

    @property
    def end(self) -> float:
        """From here on the predicate holds."""


@dataclass(frozen=True)
class SubGoal:
    """One thing to do.

    Attributes:
        kind: placing and pushing move an object to a place, moving moves a joint.
        words: the sub-goal as it is named in a program's text.
        goal: index of the predicate that judges it; None for a drawer that only has to be opened for what goes in.
        after: index of the sub-goal that has to be reached before.
        target, place: the object, and the place that it goes to; empty for joints.
        at_object: the place is an object of the scene.
        joint: of `moving`.
        shut: of `placing`: the joint that shuts the place, of which shutting it is a sub-goal of its own.
    """

    kind: Kind
    words: str
    goal: int | None
    after: int | None = None
    target: str = ""
    place: str = ""
    at_object: bool = False
    joint: JointGoal | None = None
    shut: JointGoal | None = None


def sub_goals(context: Context, joint_goals: Mapping[str, JointGoal]) -> tuple[SubGoal, ...]:
    """The sub-goals of a task, those that have to be reached first before those that wait for them.

    Args:
        joint_goals: by predicate and what it speaks of, `"open wooden_cabinet_1_middle_region"`; also for places that have
            to be open for an object that goes in.

    Raises:
        TaskError: a predicate that the built-in rewards do not know, or one about something that the scene does not have.
    """
    ordered: list[SubGoal] = []
    closing: list[tuple[int, str, JointGoal]] = []
    inside: dict[str, int] = {}  # joint that shuts a place -> the last sub-goal that puts something there
    closed = {_joint(context, joint_goals, "close", g[1]).joint for g in context.goals if g[0] == "close"}
    for index, (predicate, *args) in enumerate(context.goals):
        if predicate in ("in", "on"):
            target, place = args
            if target not in context.object_names:
                raise _unknown(context, target)
            joint = joint_goals.get(f"open {place}") if predicate == "in" else None
            after = None
            if joint is not None and joint.joint not in closed:
                _known_joint(context, joint)
                after = len(ordered)
                ordered.append(SubGoal("moving", f"open {place}", None, joint=joint))
            if joint is not None:
                inside[joint.joint] = len(ordered)
            ordered.append(
                SubGoal(
                    kind="pushing" if _category(target) in PUSHED else "placing",
                    words=f"put {target} {predicate} {place}",
                    goal=index,
                    after=after,
                    target=target,
                    place=_place(context, place),
                    at_object=_place(context, place) in context.object_names,
                    shut=joint if joint is not None and after is None else None,
                )
            )
        elif predicate in ("open", "close", "turnon", "turnoff"):
            joint = _joint(context, joint_goals, predicate, args[0])
            words = f"{predicate.replace('turn', 'turn ')} {args[0]}"
            if predicate == "close":
                closing.append((index, words, joint))  # behind what goes in
            else:
                ordered.append(SubGoal("moving", words, index, joint=joint))
        else:
            raise TaskError(
                f"{context.task} asks for {predicate!r}, which has no built-in reward; known are in, on, open, close, turnon,"
                " turnoff; have one written by `tgrpo gen-reward` without --builtin"
            )
    ordered += [SubGoal("moving", words, i, after=inside.get(joint.joint), joint=joint) for i, words, joint in closing]
    return tuple(ordered)


def grip(target: str) -> tuple[float, float]:
    """Height above an object's origin and distance from its axis at which it is gripped, m."""
    return GRIPS.get(_category(target), (0.0, 0.0))


def _category(name: str) -> str:
    return name.rpartition("_")[0]


def _place(context: Context, name: str) -> str:
    """The object or place at which something shall be."""
    if name.startswith(f"{BASKET}_"):  # Algorithm 2 measures to the basket, not to the region in it
        name = next((o for o in context.object_names if name.startswith(o)), name)
    if name not in (*context.object_names, *context.place_names):
        raise _unknown(context, name)
    return name


def _joint(context: Context, joint_goals: Mapping[str, JointGoal], predicate: str, name: str) -> JointGoal:
    joint = joint_goals.get(f"{predicate} {name}")
    if joint is None:
        raise TaskError(f"{context.task} asks for {predicate} {name}, of which no joint is known")
    return _known_joint(context, joint)


def _known_joint(context: Context, joint: JointGoal) -> JointGoal:
    if joint.joint not in context.joint_names:
        raise _unknown(context, joint.joint)
    if joint.handle not in context.place_names:
        raise _unknown(context, joint.handle)
    return joint


def _unknown(context: Context, name: str) -> TaskError:
    known = ", ".join((*context.object_names, *context.place_names, *context.joint_names))
    return TaskError(f"the goal of {context.task} speaks of {name!r}, which is not among {known}")
