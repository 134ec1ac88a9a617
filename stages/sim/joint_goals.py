"""From what position to what position a joint counts as open, closed, on or off.

LIBERO says it in the classes of its fixtures, which read the meshes' XML when they are made. Here the class bodies are run
on a stand-in for their base class, so nothing of LIBERO or robosuite is imported and no assets are needed.
"""

import ast
import functools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from stages.errors import TaskError
from stages.sim.runtime import libero_root

_METHODS = {"open": "is_open", "close": "is_close", "turnon": "turn_on", "turnoff": "turn_off"}
_OPPOSITE = {"open": "close", "close": "open", "turnon": "turnoff", "turnoff": "turnon"}
_BASE = "ArticulatedObject"

# Category of fixture -> part of it -> joint and handle; "" is the fixture itself. A drawer's part is its region.
_DRAWERS = {f"{level}_region": (f"{level}_level", f"{level}_handle") for level in ("top", "middle", "bottom")}
_PARTS = {
    "wooden_cabinet": _DRAWERS,
    "white_cabinet": _DRAWERS,
    "microwave": {part: ("microjoint", "handle") for part in ("", "heating_region")},
    "flat_stove": {"": ("button", "knob")},
}


@dataclass(frozen=True)
class JointGoal:
    """What a predicate asks of a joint. Positions in metres (drawers) or radians (doors, knobs)."""

    joint: str  # its name in the scene: wooden_cabinet_1_top_level
    handle: str  # the place where a hand takes hold: wooden_cabinet_1_top_handle
    start: float  # up to here the opposite holds
    end: float  # from here on the predicate holds


def joint_goals(goals: Sequence[tuple[str, ...]]) -> dict[str, JointGoal]:
    """What a task's goal asks of joints, by predicate and what it speaks of: `"open wooden_cabinet_1_middle_region"`.

    An object that goes into a drawer or behind a door asks for it to be open: `in bowl_1 wooden_cabinet_1_top_region` gives
    `"open wooden_cabinet_1_top_region"`.

    Args:
        goals: as `parse_goal` gives them.

    Raises:
        TaskError: a predicate speaks of a fixture whose joints are not known here.
        SimulatorError: LIBERO is not installed.
    """
    wanted: dict[str, JointGoal] = {}
    for predicate, *args in goals:
        if predicate in _METHODS:
            wanted[f"{predicate} {args[0]}"] = _joint_goal(predicate, args[0])
        elif predicate == "in" and _part(args[1]) is not None:
            wanted[f"open {args[1]}"] = _joint_goal("open", args[1])
    return wanted


def _joint_goal(predicate: str, name: str) -> JointGoal:
    part = _part(name)
    if part is None:
        raise TaskError(
            f"the joint of {name} is not known; known are those of {', '.join(_PARTS)} with the parts that LIBERO names"
        )
    fixture, category, (joint, handle) = part
    properties = _fixture(category)
    return JointGoal(
        joint=f"{fixture}_{joint}",
        handle=f"{fixture}_{handle}",
        start=_bound(properties, _OPPOSITE[predicate]),
        end=_bound(properties, predicate),
    )


def _part(name: str) -> tuple[str, str, tuple[str, str]] | None:
    """Fixture, its category, and the joint and handle of one of its parts; None for what has no joint."""
    match = re.fullmatch(r"(?P<fixture>(?P<category>.+?)_\d+)(?:_(?P<part>.+))?", name)
    if match is None:
        return None
    names = _PARTS.get(match["category"], {}).get(match["part"] or "")
    return None if names is None else (match["fixture"], match["category"], names)


def _bound(fixture: Any, predicate: str) -> float:
    """The position at which a predicate of one joint changes: one end of the range that LIBERO gives for it."""
    try:
        holds: Callable[[float], bool] = getattr(fixture, _METHODS[predicate])
        lower, upper = sorted(fixture.object_properties["articulation"][f"default_{predicate}_ranges"])
    except (AttributeError, KeyError, ValueError):
        raise TaskError(f"LIBERO's {type(fixture).__name__} has no range for {predicate}") from None
    return float(upper if holds((lower + upper) / 2) == holds(lower - 1.0) else lower)


class _StandIn:
    """LIBERO's base class as far as its fixtures need it to state their ranges."""

    naming_prefix = ""

    def __init__(self, *_: Any) -> None:
        self.object_properties: dict[str, dict[str, Any]] = {"articulation": {}, "vis_site_names": {}}


@functools.cache
def _fixture(category: str) -> Any:
    path = libero_root() / "envs" / "objects" / "articulated_objects.py"
    classes = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.ClassDef)]
    for node in classes:
        node.decorator_list = []  # they register the class with LIBERO
    body: list[ast.stmt] = [node for node in classes if node.name != _BASE]
    namespace: dict[str, Any] = {_BASE: _StandIn}
    exec(compile(ast.Module(body, []), str(path), "exec"), namespace)  # the installed package's own file
    return namespace["".join(word.capitalize() for word in category.split("_"))]()
