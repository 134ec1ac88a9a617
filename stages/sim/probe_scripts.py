"""Scripted trajectories on which a reward has to prove itself: an expert's success, its failures, and cheap tricks.

Each probe is a generator of actions for one episode. Most of them let the expert act up to some event, such as the lift, and
then do something else. What the events are is read from the expert's own run from the same start, so the probes of all goals
and objects are the same few functions.
"""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from stages.sim.env import LiberoEnv
from stages.sim.expert import CLOSE, GRASPS, OPEN, PickPlaceExpert
from stages.sim.hand import UP, Hand, Matrix, Vector
from stages.sim.joint_goals import JointGoal, joint_goals
from stages.sim.scripts import HOLDS, is_scripted, make_script
from stages.sim.skills import Steps, go, grip, pick
from stages.types import ACTION_DIM, Scene

Kind = Literal["success_expected", "failure_expected", "either"]

EXPERT = "expert"
DROP = "drop"
OTHER_OBJECT = "carry another object to the goal"
CUT_OFFS = {"cut off at 25%": 0.25, "cut off at 50%": 0.50, "cut off at 75%": 0.75, "cut off at 90%": 0.90}
"""Labels of the expert's run cut short, and the part of its length that is left."""

LIFTED = 0.05  # m over its start: from there on an object counts as lifted
_CARRIED = 0.12  # m over its start: from there objects are dropped and carried aside
_NOISE = (0.8, 0.8, 0.8, 0.2, 0.2, 0.2, 0.0)  # standard deviation of a disturbed action
_OVER_PLACE = 0.03  # m from the place, horizontally, at which the expert that holds for ever stops
_HOVER = 0.18  # m over the place at which an empty hand hovers
_TALL = 0.12  # m, at most, from where an object is held to its lowest point
_BESIDE = 0.20  # m from the place, horizontally, at which an object is put down wrongly
_ATTEMPT = 80  # environment steps within which an object is lifted, or given up
_PERIOD = 32  # environment steps of a movement that repeats for ever
_RANDOM_HOLD = 4  # environment steps for which a random action is held


@dataclass(frozen=True)
class ExpertRun:
    """What the expert did from a start.

    Attributes:
        actions: (N, 7).
        scenes: leading axis N + 1: the start, then after each environment step.
        success: whether it reached the goal.
    """

    actions: Vector
    scenes: Scene
    success: bool


@dataclass(frozen=True)
class Probe:
    """A trajectory to record.

    Attributes:
        label: what it is.
        kind: whether it should succeed. What counts is whether it does.
        make: its actions, for an environment that stands at the start of `probes`. Where they end the hand stands still.
    """

    label: str
    kind: Kind
    make: Callable[[LiberoEnv, np.random.Generator], Steps]


def expert_steps(env: LiberoEnv) -> Steps:
    """The actions of the task's expert from the present state, without end.

    Raises:
        TaskError: no expert covers the task.
    """
    if _needs_script(env):
        script = make_script(env)
        while True:
            yield script.act()
    yield from _acts(env, PickPlaceExpert(env.object_names, env.goals[0][1]))


def _needs_script(env: LiberoEnv) -> bool:
    return is_scripted(env.task) or len(env.goals) != 1 or env.goals[0][0] != "in"


def probes(env: LiberoEnv, run: ExpertRun) -> list[Probe]:
    """All probes from a start, without the expert's own run.

    Args:
        run: of the expert from the same start; it decides which probes make sense.
    """
    length = len(run.actions)
    found = [
        Probe(label, "failure_expected", _replayed(run.actions[: round(part * length)]))
        for label, part in CUT_OFFS.items()
    ]
    for third, name in enumerate(("first", "second", "last")):
        found.append(Probe(f"disturbed in the {name} third", "either", _disturbed(length, third)))
    found += [
        Probe("uniform random actions", "either", _uniform),
        Probe("random walk", "either", _random_walk),
    ]
    put = next((goal for goal in env.goals if len(goal) == 3 and goal[1] in env.object_names), None)
    if put is not None:
        found += _object_probes(env, run, *put[1:])
    for goal in joint_goals(env.goals).values():
        found += _joint_probes(env, run, goal)
    if len(env.goals) > 1:
        found += [
            Probe("first goal alone", "failure_expected", _first_goal(undone=False)),
            Probe("first goal, then undone", "failure_expected", _first_goal(undone=True)),
        ]
    return found


def _object_probes(env: LiberoEnv, run: ExpertRun, name: str, where: str) -> list[Probe]:
    o = env.object_names.index(name)
    held = run.scenes.grasped[:, o]
    lift = run.scenes.object_pos[:, o, 2] - run.scenes.object_pos[0, o, 2]
    start, place = run.scenes.object_pos[0, o], _place(env, run.scenes[0], where)
    # Where the hand is, from the object, when it holds it; or nearest to it, if it never does.
    distance = np.linalg.norm(run.scenes.ee_pos - run.scenes.object_pos[:, o], axis=-1)
    at = int(np.argmax(held)) if held.any() else int(np.argmin(distance))
    grip_point = run.scenes.ee_pos[at] - run.scenes.object_pos[at, o]
    found = [
        Probe("hover over the goal, open", "failure_expected", _hover(place, OPEN)),
        Probe("hover over the goal, closed fist", "failure_expected", _hover(place, CLOSE)),
        Probe("push with a closed hand", "failure_expected", _push(start, place, grip_point)),
        Probe("jitter at the grasp distance", "failure_expected", _jitter(name, grip_point)),
    ]
    if others := _other_objects(env):
        found.append(Probe(OTHER_OBJECT, "failure_expected", _carry_other(others, place)))
    if (held & (lift > LIFTED)).any():
        aside = np.linalg.norm((run.scenes.object_pos[:, o] - place)[:, :2], axis=-1)
        over = max(_OVER_PLACE, float(aside[held].min()) + 0.005)
        found += [
            Probe(DROP, "failure_expected", _drop(name)),
            Probe("drop and regrasp", "either", _drop_and_regrasp(name)),
            Probe("hold for ever", "failure_expected", _hold(name)),
            Probe("lift and lower", "failure_expected", _lift_and_lower(name)),
            Probe("put down beside the goal", "failure_expected", _put_beside(name, place)),
        ]
        if float(aside[0]) > over + 0.05:
            found.append(Probe("hold over the goal", "failure_expected", _hold_over(name, place, over)))
    return found


def _joint_probes(env: LiberoEnv, run: ExpertRun, goal: JointGoal) -> list[Probe]:
    j, handle = env.joint_names.index(goal.joint), env.place_names.index(goal.handle)
    moved = (run.scenes.joint_pos[:, j] - goal.start) / (goal.end - goal.start)
    before = np.arange(len(moved)) <= int(np.argmax(moved > 0.1)) if (moved > 0.1).any() else np.ones(len(moved), bool)
    reach = np.linalg.norm(run.scenes.ee_pos - run.scenes.place_pos[:, handle], axis=-1)
    near = max(0.04, float(reach[before].min()) + 0.005)

    def at_handle(env: LiberoEnv) -> bool:
        scene = env.scene()
        return float(np.linalg.norm(scene.ee_pos - scene.place_pos[handle])) < near

    def beyond(part: float) -> Callable[[LiberoEnv], bool]:
        return lambda env: bool((env.scene().joint_pos[j] - goal.start) / (goal.end - goal.start) > part)

    found = [
        Probe(f"stand at {goal.handle}", "failure_expected", _expert_until(at_handle)),
        Probe(f"jitter at {goal.handle}", "failure_expected", _jitter_at(at_handle)),
    ]
    if (moved > 0.5).any() and moved[0] < 0.4:
        found += [
            Probe(f"{goal.joint} half-way", "failure_expected", _expert_until(beyond(0.5))),
            Probe(f"{goal.joint} there and back", "failure_expected", _there_and_back(beyond(0.6))),
        ]
    others = [place for place in env.place_names if place.endswith(("_handle", "_knob")) and place != goal.handle]
    for other in others[:1]:
        position = run.scenes.place_pos[0, env.place_names.index(other)]
        found.append(Probe(f"hover at {other}", "failure_expected", _hover(position, OPEN, height=0.08)))
    return found


Make = Callable[[LiberoEnv, np.random.Generator], Steps]


def _place(env: LiberoEnv, scene: Scene, where: str) -> Vector:
    """The position (3,) of an object or a region."""
    if where in env.object_names:
        return scene.object_pos[env.object_names.index(where)]
    return scene.place_pos[env.place_names.index(where)]


def _replayed(actions: Vector) -> Make:
    return lambda env, rng: iter(actions)


def _disturbed(length: int, third: int) -> Make:
    def steps(env: LiberoEnv, rng: np.random.Generator) -> Steps:
        for step, action in enumerate(expert_steps(env)):
            noisy = third * length <= 3 * step < (third + 1) * length
            yield np.clip(action + rng.normal(0.0, _NOISE), -1.0, 1.0) if noisy else action

    return steps


def _uniform(env: LiberoEnv, rng: np.random.Generator) -> Steps:
    while True:
        yield from itertools.repeat(rng.uniform(-1.0, 1.0, ACTION_DIM), _RANDOM_HOLD)


def _random_walk(env: LiberoEnv, rng: np.random.Generator) -> Steps:
    action = np.zeros(ACTION_DIM)
    while True:
        action = 0.95 * action + 0.3 * rng.normal(size=ACTION_DIM)
        yield np.clip(action, -1.0, 1.0)


def _until(steps: Steps, done: Callable[[], bool]) -> Steps:
    for action in steps:
        if done():
            return
        yield action


def _lifted(hand: Hand, name: str) -> Callable[[], bool]:
    start = hand.pose_of(name)[0][2]
    return lambda: hand.holds(name) and bool(hand.pose_of(name)[0][2] - start > LIFTED)


def _carry(env: LiberoEnv, name: str) -> Steps:
    """The expert up to the lift, and then straight up with the object."""
    hand = Hand(env)
    start = hand.pose_of(name)[0][2]
    yield from _until(expert_steps(env), _lifted(hand, name))
    missing = start + _CARRIED - hand.pose_of(name)[0][2]
    yield from go(hand, hand.position + missing * UP, hand.orientation, CLOSE, limit=20)


def _drop(name: str) -> Make:
    def steps(env: LiberoEnv, rng: np.random.Generator) -> Steps:
        yield from _carry(env, name)
        yield from grip(Hand(env), OPEN, 2)

    return steps


def _drop_and_regrasp(name: str) -> Make:
    def steps(env: LiberoEnv, rng: np.random.Generator) -> Steps:
        yield from _carry(env, name)
        hand = Hand(env)
        yield from grip(hand, OPEN, 12)
        yield from expert_steps(env)

    return steps


def _hold(name: str) -> Make:
    return lambda env, rng: _carry(env, name)


def _hold_over(name: str, place: Vector, near: float) -> Make:
    def steps(env: LiberoEnv, rng: np.random.Generator) -> Steps:
        hand = Hand(env)

        def over() -> bool:
            return hand.holds(name) and float(np.linalg.norm((hand.pose_of(name)[0] - place)[:2])) < near

        yield from _until(expert_steps(env), over)
        yield _still(CLOSE)

    return steps


def _lift_and_lower(name: str) -> Make:
    def steps(env: LiberoEnv, rng: np.random.Generator) -> Steps:
        hand = Hand(env)
        start = hand.pose_of(name)[0][2]
        yield from _carry(env, name)
        top, orientation = hand.position, hand.orientation
        height = hand.pose_of(name)[0][2] - start - 0.02
        for down in _to_and_fro():
            yield hand.action(top - down * height * UP, orientation, CLOSE)

    return steps


def _put_beside(name: str, place: Vector) -> Make:
    def steps(env: LiberoEnv, rng: np.random.Generator) -> Steps:
        hand = Hand(env)
        start = hand.pose_of(name)[0]
        yield from _carry(env, name)
        aside = (start - place)[:2]
        spot = place[:2] + _BESIDE * aside / max(float(np.linalg.norm(aside)), 1e-6)
        here = hand.pose_of(name)[0]
        orientation = hand.orientation
        over = hand.position + np.array([*(spot - here[:2]), 0.0])
        yield from go(hand, over, orientation, CLOSE)
        low = hand.position - (hand.pose_of(name)[0][2] - start[2] - 0.004) * UP
        yield from go(hand, low, orientation, CLOSE, limit=40)
        yield from grip(hand, OPEN, 8)
        yield from go(hand, hand.position + 0.10 * UP, orientation, OPEN)

    return steps


def _other_objects(env: LiberoEnv) -> list[str]:
    """The objects that the expert could carry and that the goal does not name."""
    named = {name for goal in env.goals for name in goal[1:]}
    known = HOLDS if _needs_script(env) else GRASPS
    return [name for name in env.object_names if name not in named and name.rpartition("_")[0] in known]


def _carry_other(names: list[str], place: Vector) -> Make:
    """The first of them that can be lifted; some stand where no hand can grip them."""

    def steps(env: LiberoEnv, rng: np.random.Generator) -> Steps:
        hand = Hand(env)
        for name in names:
            lifted = _lifted(hand, name)
            if _needs_script(env):
                yield from pick(hand, name, HOLDS[name.rpartition("_")[0]], attempts=1)
                if hand.holds(name):
                    over, orientation = place + (_HOVER + _TALL) * UP, hand.orientation
                    yield from go(hand, over, orientation, CLOSE, over=float(over[2]))
                    yield from grip(hand, OPEN, 8)
                    return
            else:
                expert = PickPlaceExpert(env.object_names, name)
                yield from _until(_acts(env, expert, _ATTEMPT), lifted)
                if lifted():
                    yield from _acts(env, expert)
            yield from go(hand, hand.position + _CARRIED * UP, hand.orientation, OPEN, limit=20)

    return steps


def _acts(env: LiberoEnv, expert: PickPlaceExpert, limit: int | None = None) -> Steps:
    for _ in itertools.count() if limit is None else range(limit):
        yield expert.act(env.scene())


def _hover(place: Vector, gripper: float, height: float = _HOVER) -> Make:
    def steps(env: LiberoEnv, rng: np.random.Generator) -> Steps:
        hand, goal = Hand(env), place + height * UP
        yield from go(hand, goal, hand.orientation, gripper, over=float(goal[2]))

    return steps


def _push(start: Vector, place: Vector, grip_point: Vector) -> Make:
    def steps(env: LiberoEnv, rng: np.random.Generator) -> Steps:
        hand = Hand(env)
        way = (place - start)[:2]
        ahead = np.array([*way / max(float(np.linalg.norm(way)), 1e-6), 0.0])
        at, orientation = start + grip_point[2] * UP, hand.orientation
        yield from go(hand, at - 0.10 * ahead, orientation, CLOSE, over=float(start[2]) + 0.15)
        yield from go(hand, at + 0.12 * ahead, orientation, CLOSE, limit=60)

    return steps


def _jitter(name: str, grip_point: Vector) -> Make:
    """Down to where the object is gripped, and 12 cm up again: across the distance of being ready, in both ways."""

    def steps(env: LiberoEnv, rng: np.random.Generator) -> Steps:
        hand = Hand(env)
        orientation = hand.orientation
        low = hand.pose_of(name)[0] + grip_point + 0.005 * UP
        above = low + 0.12 * UP
        yield from go(hand, above, orientation, OPEN, over=float(above[2]))
        for down in _to_and_fro(2 * _PERIOD):
            yield hand.action(above + down * (low - above), orientation, OPEN)

    return steps


def _expert_until(done: Callable[[LiberoEnv], bool]) -> Make:
    return lambda env, rng: _until(expert_steps(env), lambda: done(env))


def _jitter_at(done: Callable[[LiberoEnv], bool]) -> Make:
    """At a handle, 6 cm back along the way that the hand came, and there again."""

    def steps(env: LiberoEnv, rng: np.random.Generator) -> Steps:
        hand, path = Hand(env), [Hand(env).position]
        for action in _until(expert_steps(env), lambda: done(env)):
            path.append(hand.position)
            yield action
        here, orientation = hand.position, hand.orientation
        away = next((p for p in reversed(path) if float(np.linalg.norm(p - here)) > 0.06), path[0])
        for back in _to_and_fro():
            yield hand.action(here + back * (away - here), orientation, OPEN)

    return steps


def _there_and_back(done: Callable[[LiberoEnv], bool]) -> Make:
    def steps(env: LiberoEnv, rng: np.random.Generator) -> Steps:
        yield from _backwards(env, lambda: done(env), None)

    return steps


def _first_goal(*, undone: bool) -> Make:
    def steps(env: LiberoEnv, rng: np.random.Generator) -> Steps:
        before = int(env.scene().goal.sum())

        def reached() -> bool:
            return int(env.scene().goal.sum()) > before

        if undone:
            yield from _backwards(env, reached, CLOSE)
            return
        steps = expert_steps(env)
        yield from _until(steps, reached)
        yield from itertools.islice(steps, 12)  # lets go

    return steps


def _backwards(env: LiberoEnv, done: Callable[[], bool], gripper: float | None) -> Steps:
    """The expert up to an event, and then the hand's way back, with the gripper as it is or as given."""
    hand = Hand(env)
    path: list[tuple[Vector, Matrix]] = []
    last = OPEN
    for action in _until(expert_steps(env), done):
        path.append((hand.position, hand.orientation))
        last = float(action[6])
        yield action
    for position, orientation in reversed(path):
        yield hand.action(position, orientation, last if gripper is None else gripper)


def _to_and_fro(period: int = _PERIOD) -> Iterator[float]:
    """From 0 to 1 and back, for ever."""
    for step in itertools.count():
        yield 0.5 - 0.5 * float(np.cos(2 * np.pi * step / period))


def _still(gripper: float) -> Vector:
    action = np.zeros(ACTION_DIM)
    action[6] = gripper
    return action
