"""What a scripted hand can do in LIBERO's scenes: go, pick, place, drag, open, close, turn. Each is a generator of actions.

Skills are closed-loop: every action is computed from the scene as it is. They read ground truth and draw no random
numbers, so the same start gives the same actions.
"""

from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass

import numpy as np

from stages.sim.expert import CLOSE, OPEN, rotate
from stages.sim.hand import UP, Hand, Matrix, Vector, angle_of, pointing, rotation_about, rotation_vector

Steps = Iterator[Vector]
"""Actions (7,) in [-1, 1]; the caller runs one environment step before it asks for the next."""

_NEAR = 0.006  # distance, m, and
_ALIGNED = 0.06  # angle, rad, at which a goal is reached
_FUNNEL = 0.02  # horizontal distance, m, within which the hand leaves its travelling height
_STALLED = 0.0008  # m a step: slower than this, something is in the way
_PATIENCE = 6  # steps of standing still after which a move ends
_HOVER = 0.10  # height, m, over a grip at which the hand approaches it
_RELEASE_STEPS = 6  # for the fingers to open far enough
_LOST = 0.04  # m that an object may slip in the hand before it counts as lost
_HANDLES = {"top": "g18", "middle": "g29", "bottom": "g40"}  # geoms of LIBERO's cabinets


@dataclass(frozen=True)
class Hold:
    """How an object is held. Metres and radians.

    Attributes:
        point: where the grip site goes, in the object's frame. For a `round` object: distance from its axis, 0, height.
        yaw: of the fingers' axis, in the object's frame. For a `round` object also the direction, in the world, in
            which `point` lies from its axis.
        round: the object looks the same from all sides.
        tilt: angle by which the finger tips are raised from pointing down, and
        towards: the horizontal direction, in the world, in which they then point.
        hover: height over `point` at which the hand approaches.
        leave: how the hand moves off with it before it travels.
    """

    point: tuple[float, float, float]
    yaw: float = np.pi / 2
    round: bool = False
    tilt: float = 0.0
    towards: float = 0.0
    hover: float = 0.10
    leave: tuple[float, float, float] = (0.0, 0.0, 0.03)


def go(
    hand: Hand,
    goal: Vector | Callable[[], Vector],
    orientation: Matrix,
    gripper: float,
    *,
    over: float = -np.inf,
    until: Callable[[], bool] = lambda: False,
    limit: int = 80,
) -> Steps:
    """Moves in a straight line, or not below the height `over` (m) until it is right over the goal, then down.

    Ends at the goal, when `until` holds, when nothing moves any more, or after `limit` steps.
    """
    still, before = 0, hand.position
    for _ in range(limit):
        if until():
            return
        target = goal() if callable(goal) else goal
        here = hand.position
        angle = float(np.linalg.norm(rotation_vector(orientation @ hand.orientation.T)))
        if float(np.linalg.norm(target - here)) < _NEAR and angle < _ALIGNED:
            return
        waypoint = target.copy()
        aside = float(np.linalg.norm((target - here)[:2]))
        if aside > _FUNNEL or angle > 3 * _ALIGNED:
            waypoint[2] = max(target[2], over)
            if here[2] < over - 0.03:  # up first
                waypoint[:2] = here[:2]
        yield hand.action(waypoint, orientation, gripper)
        here = hand.position
        moved = float(np.linalg.norm(here - before))
        still = still + 1 if moved < _STALLED and angle < 3 * _ALIGNED else 0
        if still > _PATIENCE:
            return
        before = here


def grip(hand: Hand, gripper: float, limit: int = 20) -> Steps:
    """Holds the pose while the fingers close or open, until they stop or for `limit` steps."""
    position, orientation, before = hand.position, hand.orientation, np.inf
    for step in range(limit):
        yield hand.action(position, orientation, gripper)
        if step > 3 and abs(hand.opening - before) < 0.0005:
            return
        before = hand.opening


def pick(hand: Hand, name: str, hold: Hold, attempts: int = 3) -> Generator[Vector, None, bool]:
    """Grips an object from above and moves off with it; tries again when it slips. Returns whether it is held."""
    for _ in range(attempts):
        orientation = pointing(_grip_yaw(hand, name, hold), hold.tilt, hold.towards)
        above = _grip_point(hand, name, hold)[2] + hold.hover
        above += float(np.clip(hand.position[2] - above, 0.0, 0.10))  # what was put down last may be beside it
        yield from go(hand, lambda: _grip_point(hand, name, hold), orientation, OPEN, over=above)
        yield from grip(hand, CLOSE)
        if hand.holds(name):
            yield from go(hand, hand.position + hold.leave, orientation, CLOSE)
        if hand.holds(name):
            return True
        yield from grip(hand, OPEN, _RELEASE_STEPS)
        yield from go(hand, hand.position + 0.08 * UP, orientation, OPEN)
    return False


def place(
    hand: Hand,
    name: str,
    goal: Callable[[], Vector],
    *,
    over: float,
    yaw: float | None = None,
    enter: tuple[float, float, float] | None = None,
) -> Steps:
    """Brings the lowest point of the held object to `goal`, lets go and retreats upwards. Ends early if it is lost.

    Args:
        goal: where the lowest point goes, (3,), m; horizontally the object's origin.
        over: height, m, of the lowest point while it travels.
        yaw: of the fingers' axis while it is put down; None keeps the axis of the grip.
        enter: from where, relative to the goal, the object is brought in sideways; the hand leaves the same way.
    """
    orientation = hand.orientation if yaw is None else pointing(yaw)
    held = float(np.linalg.norm(hand.position - hand.pose_of(name)[0]))

    def lost() -> bool:
        return float(np.linalg.norm(hand.position - hand.pose_of(name)[0])) > held + _LOST

    def target() -> Vector:
        lowest = np.array([*hand.pose_of(name)[0][:2], hand.bottom_of(name)])
        return goal() + hand.position - lowest

    aside = np.zeros(3) if enter is None else np.asarray(enter)
    height = over + float(hand.position[2]) - hand.bottom_of(name)
    if enter is not None:
        yield from go(hand, lambda: target() + aside, orientation, CLOSE, over=height, until=lost)
        height = -np.inf
    yield from go(hand, target, orientation, CLOSE, over=height, until=lost)
    yield from grip(hand, OPEN, _RELEASE_STEPS)
    yield from go(hand, hand.position + aside, orientation, OPEN)
    yield from go(hand, hand.position + 0.12 * UP, orientation, OPEN)


def drag(hand: Hand, name: str, goal: Vector, *, height: float, hook: float = 0.024) -> Steps:
    """Drags a dish over the table with closed fingers inside its leading rim.

    Args:
        goal: where its origin shall be, (3,), m; the height is left out.
        height: of the grip site over the dish's origin, m.
        hook: distance of the fingers from its centre, m, at the start.
    """
    start = hand.pose_of(name)[0]
    way = goal - start
    way[2] = 0.0
    if float(np.linalg.norm(way)) < _NEAR:  # it is there, and there is no direction to drag it in
        return
    ahead = way / np.linalg.norm(way)
    orientation = pointing(angle_of(ahead))
    inside = start + hook * ahead + height * UP
    yield from go(hand, inside + _HOVER * UP, orientation, CLOSE)
    yield from go(hand, inside, orientation, CLOSE)

    def lead() -> Vector:
        """A little ahead on the straight way, so that the dish does not stray from it."""
        done = float((hand.pose_of(name)[0] - start) @ ahead)
        return inside + (done + 0.05) * ahead

    yield from go(hand, lead, orientation, CLOSE, until=lambda: bool((goal - hand.pose_of(name)[0]) @ ahead < _NEAR))
    yield from go(hand, hand.position + _HOVER * UP, orientation, CLOSE)


def pull_drawer(hand: Hand, region: str) -> Steps:
    """Opens a drawer: grips its handle from the front and moves away."""
    bar, out = _handle(hand, region)
    orientation = pointing(angle_of(out), 1.2, angle_of(-out))
    yield from go(hand, hand.position + 0.03 * UP, orientation, OPEN)  # turns before it is near anything
    yield from go(hand, bar() + 0.14 * out, orientation, OPEN, over=float(bar()[2]))
    yield from go(hand, bar, orientation, OPEN)
    yield from grip(hand, CLOSE)
    yield from go(hand, bar() + 0.17 * out, orientation, CLOSE)
    yield from grip(hand, OPEN, _RELEASE_STEPS)
    yield from go(hand, hand.position + 0.08 * out + 0.02 * UP, orientation, OPEN)
    yield from go(hand, hand.position + 0.15 * UP, pointing(np.pi / 2), OPEN)


def push_drawer(hand: Hand, region: str) -> Steps:
    """Closes a drawer: pushes its handle with closed fingers."""
    bar, out = _handle(hand, region)
    orientation = pointing(angle_of(out) + np.pi / 2, 0.8, angle_of(-out))
    yield from go(hand, bar() + 0.06 * out, orientation, CLOSE, over=float(bar()[2]) + _HOVER)
    yield from go(hand, lambda: bar() - 0.03 * out, orientation, CLOSE, until=lambda: hand.is_true("close", region))
    yield from go(hand, hand.position + _HOVER * out, orientation, CLOSE)


def push_door(hand: Hand, microwave: str) -> Steps:
    """Closes a microwave: pushes its door around the hinge with closed fingers, near its upper edge."""
    data, joint = hand.env.data, hand.env.model.joint(f"{microwave}_microjoint")
    hinge = data.xanchor[joint.id].copy()
    down = pointing(np.pi / 2)

    def outside(ahead: float, distance: float) -> Vector:
        angle = data.qpos[joint.qposadr[0]] + ahead
        along, out = np.array([np.cos(angle), np.sin(angle), 0.0]), np.array([np.sin(angle), -np.cos(angle), 0.0])
        return hinge + 0.15 * along + (0.027 + distance) * out + 0.05 * UP

    yield from go(hand, outside(0.0, 0.08), down, CLOSE, over=float(hinge[2]) + 0.20)
    yield from go(
        hand, lambda: outside(0.3, 0.0), down, CLOSE, until=lambda: hand.is_true("close", microwave), limit=150
    )


def turn_knob(hand: Hand, stove: str) -> Steps:
    """Turns a stove on: grips the bar on its knob and turns the hand."""
    data, joint = hand.env.data, hand.env.model.joint(f"{stove}_button")
    bar = data.xanchor[joint.id] + np.array([-0.004, 0.0, 0.034])
    down = pointing(np.pi / 2)
    yield from go(hand, bar, down, OPEN, over=bar[2] + _HOVER)
    yield from grip(hand, CLOSE)
    turned = rotation_about(UP, 1.2) @ down
    yield from go(hand, bar, turned, CLOSE, until=lambda: data.qpos[joint.qposadr[0]] > 0.8, limit=40)
    yield from grip(hand, OPEN, 4)
    yield from go(hand, hand.position + _HOVER * UP, hand.orientation, OPEN)


def _grip_point(hand: Hand, name: str, hold: Hold) -> Vector:
    position, quat = hand.pose_of(name)
    if hold.round:
        radius, _, height = hold.point
        return position + np.array([radius * np.cos(hold.yaw), radius * np.sin(hold.yaw), height])
    return position + rotate(quat, np.asarray(hold.point))


def _grip_yaw(hand: Hand, name: str, hold: Hold) -> float:
    if hold.round:
        return hold.yaw
    return angle_of(rotate(hand.pose_of(name)[1], np.array([np.cos(hold.yaw), np.sin(hold.yaw), 0.0])))


def _handle(hand: Hand, region: str) -> tuple[Callable[[], Vector], Vector]:
    """Where the handle's bar of a drawer is, (3,), and the direction in which the drawer opens, (3,)."""
    cabinet, _, level = region.removesuffix("_region").rpartition("_")
    bar = hand.env.data.geom(f"{cabinet}_{_HANDLES[level]}")
    joint = hand.env.model.joint(f"{cabinet}_{level}_level").id
    return lambda: bar.xpos.copy(), -hand.env.data.xaxis[joint].copy()
