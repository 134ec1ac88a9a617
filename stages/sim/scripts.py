"""Scripted experts for libero_spatial, libero_goal and libero_10: a plan of skills from the task's BDDL goal.

Every goal predicate is one plan: `On` and `In` pick and place, `Open` and `Close` move a drawer or a door, `Turnon`
turns a stove's knob. What differs between objects, places and scenes stands in tables. libero_object has an expert of
its own (`stages/sim/expert.py`).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stages.errors import TaskError
from stages.sim.env import NO_OP, LiberoEnv
from stages.sim.hand import Hand
from stages.sim.skills import Hold, Steps, drag, pick, place, pull_drawer, push_door, push_drawer, turn_knob
from stages.types import Task

SUITES = ("libero_spatial", "libero_goal", "libero_10")
"""The suites whose tasks are all scripted."""

_ALONG_X, _ALONG_Y = 0.0, np.pi / 2  # directions of the fingers' axis
_ROUNDS = 2  # how often a plan is gone through; what holds already is left out

HOLDS = {
    "akita_black_bowl": Hold((0.047, 0.0, 0.036), round=True),
    "alphabet_soup": Hold((0.0, 0.0, 0.012), round=True),
    "black_book": Hold((0.0, -0.012, 0.110), yaw=_ALONG_X),
    "butter": Hold((0.0, 0.0, 0.0)),
    "chocolate_pudding": Hold((0.0, 0.0, 0.0)),
    "cream_cheese": Hold((0.0, 0.0, 0.0)),
    "moka_pot": Hold((0.0, 0.0, 0.075), yaw=_ALONG_X),  # the lid's knob
    "porcelain_mug": Hold((0.0565, 0.0, 0.089), yaw=_ALONG_X),  # the wall across from the handle
    "tomato_sauce": Hold((0.0, 0.0, 0.012), round=True),
    "white_yellow_mug": Hold((-0.066, 0.0, 0.080), yaw=_ALONG_X),
    "wine_bottle": Hold((0.0, 0.0, 0.120), round=True),
}
"""How objects are held, by category."""

_HOLDS_IN_TASK = {
    # The +x wall of the bowl: the other one is too near to the drawer's side.
    ("libero_spatial/4", "akita_black_bowl_1"): Hold((0.047, 0.0, 0.040), yaw=np.deg2rad(350.0), round=True),
    # From under the drawer that has just been opened.
    ("libero_goal/3", "akita_black_bowl_1"): Hold((0.047, 0.0, 0.036), round=True, leave=(-0.02, 0.12, 0.015)),
    # The end away from the milk, from above it.
    ("libero_10/1", "cream_cheese_1"): Hold((-0.028, 0.0, 0.002), hover=0.20),
    # Between the closed drawers and the front of the open one only the hand's narrow side has room.
    ("libero_10/3", "akita_black_bowl_1"): Hold((0.047, 0.0, 0.036), yaw=np.pi, round=True),
    # Level, by the handle: the hand stays outside of the microwave.
    ("libero_10/9", "white_yellow_mug_1"): Hold((0.062, 0.0, 0.056), tilt=0.9, towards=np.pi / 2, hover=0.25),
}


@dataclass(frozen=True)
class Place:
    """Where an object is let go. Metres.

    Attributes:
        offset: from the place's origin to where the object's lowest point goes.
        over: height over that point, or over where the object stood if that is higher, at which it is carried.
        apart: half the distance along x between two objects that go there.
        yaw: of the fingers' axis while it is put down; None keeps the axis of the grip.
        enter: from where, relative to `offset`, it is brought in sideways; None lowers it from above.
    """

    offset: tuple[float, float, float]
    over: float = 0.06
    apart: float = 0.0
    yaw: float | None = None
    enter: tuple[float, float, float] | None = None


PLACES = {
    "akita_black_bowl": Place((0.0, 0.0, 0.02)),
    "plate": Place((0.0, 0.0, 0.006)),
    "basket_1_contain_region": Place((0.0, 0.0, 0.06), apart=0.03),
    "desk_caddy_1_back_contain_region": Place((0.0, 0.0, -0.05), over=0.15, yaw=_ALONG_X),
    "flat_stove_1_cook_region": Place((0.0, 0.0, 0.025), over=0.17, apart=0.043),
    "living_room_table_plate_right_region": Place((0.0, 0.0, 0.03)),
    "microwave_1_heating_region": Place((-0.015, -0.017, -0.068), enter=(0.0, -0.25, 0.01)),
    "white_cabinet_1_bottom_region": Place((0.0, -0.017, -0.015), over=0.10),
    "wine_rack_1_top_region": Place((0.0, -0.045, 0.032)),  # on the slope behind the lip
    "wooden_cabinet_1_top_region": Place((0.0, 0.0, 0.0)),
    "wooden_cabinet_1_top_side": Place((0.0, 0.0, 0.002)),
}
"""Where objects are let go, by the category of another object or by the name of a region."""

_PLATE_HEIGHT = 0.004  # of the finger tips' grip site over a plate that they drag by its rim from inside


class Script:
    """The scripted expert of one episode. Make it after `env.reset`, and ask for one action before each step.

    Unlike `PickPlaceExpert` it remembers where in its plan it is, so it belongs to one episode of one environment.
    """

    def __init__(self, env: LiberoEnv) -> None:
        self._steps = _plan(env)

    def act(self) -> NDArray[np.float64]:
        """The next action (7,) in [-1, 1]; after the plan's end the one that stands still."""
        return next(self._steps, NO_OP)


def is_scripted(task: Task) -> bool:
    """Whether `make_script` knows the task's goals, objects and places."""
    return task.suite in SUITES


def make_script(env: LiberoEnv) -> Script:
    """A script for the episode that the last reset has started.

    Raises:
        TaskError: no script covers the task.
    """
    if not is_scripted(env.task):
        raise TaskError(f"there is no script for {env.task.id}; there are scripts for {', '.join(SUITES)}")
    return Script(env)


def _plan(env: LiberoEnv) -> Steps:
    hand = Hand(env)
    goals = sorted(env._env.parsed_problem["goal_state"], key=lambda goal: goal[0] == "close")  # what is shut is last
    for _ in range(_ROUNDS):
        for index, (predicate, *args) in enumerate(goals):
            if hand.is_true(predicate, *args):
                continue
            if predicate in ("on", "in"):
                shared = sum(goal[-1] == args[1] for goal in goals) > 1
                side = (-1) ** index if shared else 0
                yield from _put(hand, *args, side=side)
            elif predicate == "open":
                yield from pull_drawer(hand, *args)
            elif predicate == "close":
                if all(hand.is_true(*goal) for goal in goals if goal[0] != "close"):  # else there is still work inside
                    yield from (push_drawer if args[0].endswith("_region") else push_door)(hand, *args)
            elif predicate == "turnon":
                yield from turn_knob(hand, *args)
            else:
                raise TaskError(f"the script of {env.task.id} knows no goal {predicate!r}")


def _put(hand: Hand, name: str, where: str, *, side: int) -> Steps:
    if where == "main_table_stove_front_region":
        goal = hand.origin_of(where) + np.array([0.0, 0.01, 0.0])
        for corner in (goal + np.array([0.11, 0.0, 0.0]), goal):  # around the cream cheese
            yield from drag(hand, name, corner, height=_PLATE_HEIGHT)
        return
    if where == "wooden_cabinet_1_top_region" and not hand.is_true("open", where):
        yield from pull_drawer(hand, where)
    hold = _HOLDS_IN_TASK.get((hand.env.task.id, name)) or HOLDS[name.rpartition("_")[0]]
    spot = PLACES.get(where) or PLACES[where.rpartition("_")[0]]
    offset = np.array(spot.offset) + np.array([side * spot.apart, 0.0, 0.0])
    top = max(hand.bottom_of(name), (hand.origin_of(where) + offset)[2])
    if (yield from pick(hand, name, hold)):
        yield from place(
            hand, name, lambda: hand.origin_of(where) + offset, over=top + spot.over, yaw=spot.yaw, enter=spot.enter
        )
