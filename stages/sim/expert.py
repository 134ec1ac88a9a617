"""A scripted expert for LIBERO-Object: picks the target up from above and drops it into the basket.

It reads ground-truth poses, acts on the present scene alone (no timers, no memory), and never turns the hand, so that
a small policy can be cloned from it and so that it recovers by itself when its actions are disturbed: a lost object
is approached again.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from stages.errors import TaskError
from stages.types import ACTION_DIM, Scene

Phase = Literal["approach", "descend", "grasp", "lift", "transport", "release"]

OPEN, CLOSE = -1.0, 1.0


@dataclass(frozen=True)
class Grasp:
    """How an object is held. Metres.

    `point` is where the grip site goes, in the object's body frame; `below` is how far the standing object reaches
    under that point, which decides how high it must be lifted over the basket's rim.
    """

    point: tuple[float, float, float]
    below: float


GRASPS = {
    "alphabet_soup": Grasp((0.0, 0.012, -0.003), 0.050),
    "bbq_sauce": Grasp((0.0, 0.0, 0.030), 0.085),
    "butter": Grasp((0.0, 0.0, 0.000), 0.010),
    "chocolate_pudding": Grasp((0.0, 0.0, 0.000), 0.015),
    "cream_cheese": Grasp((0.020, 0.0, 0.000), 0.010),
    "ketchup": Grasp((0.0, 0.045, 0.001), 0.120),
    "milk": Grasp((0.0, 0.036, 0.000), 0.106),
    "orange_juice": Grasp((0.0, 0.036, 0.000), 0.106),
    "salad_dressing": Grasp((0.0, 0.045, 0.000), 0.120),
    "tomato_sauce": Grasp((0.0, 0.012, -0.003), 0.050),
}

RIM = 0.150  # height of the basket's walls
CLEARANCE = 0.025  # between the rim and what is carried over it
HOVER = 0.10  # height over the grasp point at which the hand approaches
FUNNEL = 0.012  # horizontal distance within which the hand goes all the way down
REACH = 0.015  # distance at which the fingers may close
LEVEL = 0.03  # height still missing at which the hand begins to carry sideways
OVER_BASKET = 0.02  # horizontal distance to the basket's centre at which the object is let go
GAIN = 18.0  # action units per metre of error


class PickPlaceExpert:
    """Drops `target` into `container`.

    Args:
        object_names: names in the order of the scenes' object axis, as LIBERO has them (`butter_1`).
        target: the name of the object to pick up; its category must be in `GRASPS`.
        container: the name of the basket.

    Raises:
        TaskError: the scene has no such object, or there is no grasp for it.
    """

    def __init__(self, object_names: tuple[str, ...], target: str, container: str = "basket_1") -> None:
        for name in (target, container):
            if name not in object_names:
                raise TaskError(
                    f"the scripted expert finds no {name!r} in the scene; there are {', '.join(object_names)}"
                )
        category = target.rpartition("_")[0]
        if category not in GRASPS:
            raise TaskError(f"the scripted expert has no grasp for {category!r}; it has {', '.join(GRASPS)}")
        self._target = object_names.index(target)
        self._container = object_names.index(container)
        self._grasp = GRASPS[category]
        self._phase: Phase = "approach"

    @property
    def phase(self) -> Phase:
        """What the last action was for."""
        return self._phase

    def reset(self) -> None:
        """Starts a new episode."""
        self._phase = "approach"

    def act(self, scene: Scene) -> NDArray[np.float64]:
        """One OSC_POSE action (7,) in [-1, 1] for a scene without leading axes; its rotation is zero."""
        hand = scene.ee_pos
        target = scene.object_pos[self._target]
        grasp = target + rotate(scene.object_quat[self._target], np.asarray(self._grasp.point))
        basket = scene.object_pos[self._container]
        carry_height = RIM + self._grasp.below + CLEARANCE

        to_grasp = grasp - hand
        in_reach = float(np.linalg.norm(to_grasp)) < REACH
        over_basket = float(np.linalg.norm((target - basket)[:2])) < OVER_BASKET

        if over_basket and hand[2] > RIM - CLEARANCE:
            self._phase = "release"
            # Down to the rim while the fingers open: a carton can hang by its gable on an open finger.
            return _action(np.array([*(basket - target)[:2], RIM - hand[2]]), OPEN)
        if in_reach and scene.grasped[self._target]:
            goal = np.array([*(basket - target + hand)[:2], carry_height])
            if hand[2] < carry_height - LEVEL:
                self._phase = "lift"
                goal[:2] = hand[:2]
            else:
                self._phase = "transport"
            return _action(goal - hand, CLOSE)
        if in_reach:
            self._phase = "grasp"
            return _action(to_grasp, CLOSE)
        aside = float(np.linalg.norm(to_grasp[:2]))
        self._phase = "descend" if aside < FUNNEL else "approach"
        height = HOVER * min(1.0, max(0.0, aside / FUNNEL - 1.0))
        return _action(to_grasp + np.array([0, 0, height]), OPEN)


def rotate(quat: NDArray[np.float64], vector: NDArray[np.float64]) -> NDArray[np.float64]:
    """Turns a vector (3,) by a unit quaternion (x, y, z, w)."""
    axis, w = quat[:3], quat[3]
    cross = 2.0 * np.cross(axis, vector)
    return vector + w * cross + np.cross(axis, cross)


def _action(displacement: NDArray[np.float64], gripper: float) -> NDArray[np.float64]:
    action = np.zeros(ACTION_DIM)
    action[:3] = np.clip(GAIN * displacement, -1.0, 1.0)
    action[6] = gripper
    return action
