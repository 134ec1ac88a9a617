"""A task, moments of it, and an honest program, for attacks to be tried beside."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.rewards.interface import MOMENT_FIELDS, Context, moment_dtype, moment_shape
from stages.rewards.sandbox import Limits

OBJECTS = ("butter_1", "basket_1", "milk_1", "ketchup_1", "cream_cheese_1", "tomato_sauce_1", "orange_juice_1")
CONTEXT = Context(
    task="libero_object/7",
    object_names=OBJECTS,
    joint_names=("cabinet_1_top_level",),
    joint_ranges=((0.0, 0.16),),
    place_names=("basket_1_contain_region",),
    goals=(("in", "butter_1", "basket_1_contain_region"),),
    max_steps=300,
    key_poses=(
        {"ee_pos": [0, 0, 1], "ee_quat": [0, 0, 0, 1], "gripper_opening": 0.04, "object_pos": {"butter_1": [0, 0, 1]}},
    ),
)
QUICK = Limits(cpu_seconds=0.2, cpu_seconds_per_moment=0.0, wall_factor=600.0)  # a busy machine may take long

GOOD = """
import numpy as np

MILESTONES = ("far", "near", "lifted", "placed", "dropped")
NEAR, LIFTED = 0.3, 0.2


def compute_reward(state, info):
    target = state.objects[state.target]
    distance = np.linalg.norm(state.ee_pos - target.pos)
    above = np.linalg.norm((target.pos - state.places["basket_1_contain_region"])[:2]) < 0.1
    carried = target.lift > LIFTED and (target.grasped or above)
    if info.task_success:
        return 16.0, {"milestone": 3}
    if carried:
        return 8.0, {"milestone": 2}
    if target.peak_lift > LIFTED and not target.grasped:
        return -4.0, {"milestone": 4}
    if distance < NEAR:
        return 2.0, {"milestone": 1}
    return -2.0, {"milestone": 0}
"""

RICH = '''
"""A docstring with 100 % in it."""
import math
import numpy as np
from math import sqrt

MILESTONES = ("far", "50% of the way", "placed")
NEAR: float = 0.05
LEVELS = {"far": -2.0, "near": 2.0, "lifted": 8.0}
OFFSET = np.array([0.0, 0.0, 0.02])
ORDER = [name for name in ("a", "b")]

def distance(a: np.ndarray, b: "np.ndarray", scale: float = NEAR) -> float:
    """Metres."""
    return float(np.linalg.norm(a - b)) * scale / scale

half = lambda x: x / 2

def compute_reward(state: "RewardState", info) -> tuple[float, dict]:
    if info.task_success:
        return 16.0, {"milestone": 2}
    target = state.objects[state.target]
    z = state.objects["butter_1"].pos[2]
    other = state.objects.get("nothing")
    total: float = 0.0
    for i, goal in enumerate(state.goals):
        if goal.predicate in {"in", "on"} and goal.holds:
            total += 1.0
        elif not goal.holds and len(goal.args) > 1:
            total -= 0.5 ** 2
    for name, thing in state.objects.items():
        if name != state.target and thing.lift > 0.1:
            total -= 1
    first = next((g for g in state.goals if g.predicate == "in"), None)
    x, y, _ = target.pos
    nearest = min(state.objects, key=lambda n: distance(state.objects[n].pos, state.ee_pos))
    dists = []
    for p in state.places.values():
        dists.append(distance(p, state.ee_pos))
    d = distance(state.ee_pos, target.pos + OFFSET)
    info_dict = {"milestone": 0}
    info_dict["milestone"] = 1 if d < NEAR else 0
    r = LEVELS["near"] if d < NEAR else LEVELS["far"]
    r += 0.0 * np.clip(d, 0, 1) + 0 * sqrt(math.pi) + half(0) + np.where(d > 1, 0.0, 0.0)
    ok = any(o.grasped for o in state.objects.values()) and all([bool(g.holds) for g in state.goals])
    try:
        q = state.joints["drawer"].pos
    except KeyError:
        q = 0.0
    for j in range(3):
        r += 0.0 * abs(target.lin_vel[j]) + max(0.0, min(1.0, 0.0)) + sum(1 for k in state.key_poses) + q
    return float(r), info_dict
'''


def moments(n: int, context: Context = CONTEXT, seed: int = 0) -> dict[str, NDArray[Any]]:
    """Random ones, in a box of one metre; `step` counts from 0."""
    random = np.random.default_rng(seed)

    def column(name: str) -> NDArray[Any]:
        shape = (n, *moment_shape(name, context))
        if name == "step":
            return np.arange(n)
        return random.random(shape) < 0.3 if moment_dtype(name) == np.bool_ else random.random(shape)

    return {name: column(name) for name in MOMENT_FIELDS}


def body(*lines: str) -> str:
    """A program whose function begins with these lines, the first of which is line 5."""
    return "\n".join(
        [
            "import math",
            "import numpy as np",
            "",
            "def compute_reward(state, info):",
            *(f"    {line}" for line in lines),
            "    return 0.0",
        ]
    )


def module(*lines: str) -> str:
    """A program that begins with these lines, the first of which is line 3."""
    return "\n".join(
        ["import math", "import numpy as np", *lines, "def compute_reward(state, info):", "    return 0.0"]
    )
