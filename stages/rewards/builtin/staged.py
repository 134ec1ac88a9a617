"""The text of a program for any goal: stages of each sub-goal as in Algorithm 2, and a level more for each that is reached.

A program is put together from functions, one per kind of sub-goal that the task has, and a `compute_reward` that asks them.
Milestones in order: the six stages while none, one, two ... sub-goals are reached, then `complete`, then the drops.
"""

import textwrap
from collections.abc import Sequence

from stages.rewards.builtin import functions
from stages.rewards.builtin.plan import SubGoal, grip
from stages.rewards.builtin.thresholds import Thresholds

LEVELS = (-2.0, 2.0, 4.0, 8.0, 10.0, 12.0)
"""Rewards of the stages of a sub-goal."""
STAGES = len(LEVELS)
DROP = -4.0
REACHED = 16.0  # what each reached sub-goal adds
COMPLETION = 8.0  # what completion adds for each sub-goal but the first, so that it stands out from being nearly there
BONUS = 0.25  # for each of the two things that may be as in the next key pose; completion stays 1.25 times the rest

_STAGE_NAMES = {
    "placing": ("far", "approaching", "ready to grasp", "lifted", "near the place", "above the place"),
    "pushing": ("far", "approaching", "ready to push", "a quarter pushed", "half pushed", "three quarters pushed"),
    "moving": ("far", "approaching", "at the handle", "a quarter moved", "half moved", "three quarters moved"),
    "mixed": ("far", "approaching", "ready", "under way", "halfway", "nearly there"),
}
_HITS = ("", ", one as in the key pose", ", both as in the key pose")
_WIDTH = 120  # columns of a program's text
_FORM = (
    " (arXiv:2506.08440): a constant reward for each milestone, set by proximity thresholds, that rises milestone by milestone"
    " and is highest on completion."
)
_WAYS = {
    "placing": "An object: far -2, approaching 2, ready to grasp 4, lifted 8, near its place 10, above it 12, dropped -4.",
    "pushing": "A push: far -2, approaching 2, ready 4, a quarter of the way 8, half 10, three quarters 12, pushed away -4.",
    "moving": "A joint: far -2, approaching 2, at the handle 4, a quarter of the way 8, half 10, three quarters 12.",
}
_SEVERAL = f"Each sub-goal reached adds {REACHED:g}; of the others the one that is farthest along counts."
_SHUT = "A place that is shut before its object is inside counts as a drop."
_TWO_PART = (
    f"R = f1 + f2 with k the stage. f1 is its level, and {BONUS:g} more if the object is where it is in key pose k, the moment at"
    f" which the demonstration first got beyond stage k. f2 is {BONUS:g} if the hand is as in key pose k, else 0."
)


def staged_program(task: str, goals: Sequence[SubGoal], thresholds: Thresholds, *, two_part: bool = False) -> str:
    """The program's source.

    Args:
        two_part: reward within a stage what is as in the next of the state's key poses, of which there must be one for each
            stage of each sub-goal.
    """
    kinds = {goal.kind for goal in goals}
    joints = "moving" in kinds or any(goal.shut for goal in goals)
    return "".join(
        [
            _docstring(task, goals, two_part=two_part),
            "\nimport numpy as np\n\nVECTORISED = True\n",
            _tuple("MILESTONES", [f'"{name}"' for name in _milestones(goals, two_part=two_part)]),
            _tuple("LEVELS" if two_part else "REWARDS", [repr(reward) for reward in _rewards(goals)]),
            _constants(goals, thresholds, two_part=two_part),
            functions.PLACING if "placing" in kinds else "",
            functions.PUSHING if "pushing" in kinds else "",
            functions.FRACTION if joints else "",
            functions.MOVING if "moving" in kinds else "",
            functions.FARTHEST if len(goals) > 1 else "",
            functions.OBJECT_HITS if two_part and _droppable(goals) else "",
            functions.HAND_HITS if two_part else "",
            "\n\ndef compute_reward(state, info):\n",
            *(f"    {line}\n" if line else "\n" for line in _body(goals, two_part=two_part)),
        ]
    )


def stage_count(goals: Sequence[SubGoal]) -> int:
    """Stages of all sub-goals together, which is also the milestone `complete` of a program that is not two-part."""
    return STAGES * len(goals)


def _droppable(goals: Sequence[SubGoal]) -> bool:
    return any(goal.kind != "moving" for goal in goals)


def _milestones(goals: Sequence[SubGoal], *, two_part: bool) -> list[str]:
    kinds = {goal.kind for goal in goals}
    stages = _STAGE_NAMES[next(iter(kinds)) if len(kinds) == 1 else "mixed"]
    hits = _HITS if two_part else _HITS[:1]
    before = [f"{n} of {len(goals)} reached, " if len(goals) > 1 else "" for n in range(len(goals))]
    names = [prefix + stage + hit for prefix in before for stage in stages for hit in hits] + ["complete"]
    if _droppable(goals):
        names += [prefix + ("pushed away" if kinds == {"pushing"} else "dropped") for prefix in before]
    return names


def _rewards(goals: Sequence[SubGoal]) -> list[float]:
    """By stage of all sub-goals together, then completion, then the drops."""
    count = len(goals)
    rewards = [REACHED * reached + level for reached in range(count) for level in LEVELS]
    rewards.append(REACHED * count + COMPLETION * (count - 1))
    return rewards + ([REACHED * reached + DROP for reached in range(count)] if _droppable(goals) else [])


def _docstring(task: str, goals: Sequence[SubGoal], *, two_part: bool) -> str:
    first = ", and ".join(goal.words for goal in goals if goal.after is None)
    then = "".join(f", and after that {goal.words}" for goal in goals if goal.after is not None)
    ways = [_WAYS[kind] for kind in _WAYS if kind in {goal.kind for goal in goals}]
    ways += [_SEVERAL] if len(goals) > 1 else []
    ways += [_SHUT] if any(goal.shut for goal in goals) else []
    ways.append(f"Complete: {_rewards(goals)[stage_count(goals)]:g}.")
    form = "In the two-part form" if two_part else "In the manner of Algorithm 2"
    paragraphs = [f'"""{task}: {first}{then}.'], [form + _FORM], ways, [_TWO_PART] if two_part else []
    texts = ["\n".join(textwrap.fill(line, _WIDTH) for line in paragraph) for paragraph in paragraphs if paragraph]
    return "\n\n".join(texts) + '\n"""\n'


def _tuple(name: str, items: Sequence[str]) -> str:
    flat = f"{name} = ({', '.join(items)})\n"
    return flat if len(flat) <= _WIDTH else f"{name} = (\n" + "".join(f"    {item},\n" for item in items) + ")\n"


def _constants(goals: Sequence[SubGoal], thresholds: Thresholds, *, two_part: bool) -> str:
    kinds = {goal.kind for goal in goals}
    lines = ["FAR, APPROACHING, READY, UNDER_WAY, HALFWAY, NEARLY = 0, 1, 2, 3, 4, 5  # the stages of a sub-goal"]
    if _droppable(goals) or len(goals) > 1:
        lines.append("DROPPED = -1")
    if len(goals) > 1:
        lines.append(f"STAGES = {STAGES}")
    lines += [
        f"COMPLETE = {stage_count(goals)}",
        "",
        f"NEAR = {thresholds.near!r}  # m from the hand to what it shall take hold of: ready",
        f"APPROACH = {thresholds.approach!r}  # m, the same: approaching",
    ]
    if "placing" in kinds:
        lines += [
            f"LIFT = {thresholds.lift!r}  # m above where an object stood: lifted",
            f"ABOVE = {thresholds.above!r}  # m from an object to its place, horizontally: above it; twice that is near it",
            "STILL = 0.05  # m/s of an object that was let go: faster is falling",
        ]
    if "pushing" in kinds:
        lines.append("ASTRAY = 0.03  # m farther from its place than at the start: pushed away")
    if any(goal.goal is None for goal in goals):
        lines.append("WIDE = 0.9  # of its way: a joint is open enough for what shall go in")
    if any(goal.shut for goal in goals):
        lines.append("NARROW = 0.5  # of its way: a joint is not open enough for what shall go in")
    if two_part:
        lines += [
            f"SAME_PLACE = {thresholds.near!r}  # m from where a key pose has the object or the hand",
            "SAME_OPENING = 0.03  # m between the openings of the fingers",
            "SAME_DIRECTION = 0.9  # cosine of the angle between the directions in which the fingers point",
            f"BONUS = {BONUS}  # for the object, and for the hand, as in the key pose",
        ]
    return "\n".join(lines) + "\n"


def _body(goals: Sequence[SubGoal], *, two_part: bool) -> list[str]:
    """The lines of `compute_reward`: the sub-goals, what they come to, the reward."""
    lines: list[str] = []
    if len(goals) == 1:
        lines += _stage(goals[0], "")
        drops, on_the_way = "COMPLETE + 1", "stage"
    else:
        numbers = range(1, len(goals) + 1)
        for number in numbers:
            lines += _one_of_several(goals, number)
        lines.append(f"reached = {' + '.join(f'np.where(reached_{n}, 1, 0)' for n in numbers)}")
        lines.append(f"stage = farthest([{', '.join(f'stage_{n}' for n in numbers)}])")
        drops, on_the_way = "COMPLETE + 1 + reached", "STAGES * reached + stage"
    if _droppable(goals):
        on_the_way = f"np.where(stage == DROPPED, {drops}, {on_the_way})"
    name = "progress" if two_part else "milestone"
    lines += [f"{name} = {on_the_way}", f"{name} = np.where(info.task_success, COMPLETE, {name})"]
    if two_part:
        return [*lines, "", *_two_parts(goals)]
    return [*lines, 'return np.array(REWARDS)[milestone], {"milestone": milestone}']


def _one_of_several(goals: Sequence[SubGoal], number: int) -> list[str]:
    """The lines that say whether a sub-goal is reached, whether it is its turn, and its stage then."""
    goal, suffix = goals[number - 1], f"_{number}"
    stage = _stage(goal, suffix)
    before = "" if goal.after is None else f" & reached_{goal.after + 1}"
    if goal.goal is None:  # open for another sub-goal, and no longer asked for when that is reached
        waiting = next(other for other in goals if other.after == number - 1)
        reached = f"(moved{suffix} > WIDE) | state.goals[{waiting.goal}].holds"
    else:
        reached = f"state.goals[{goal.goal}].holds{before}"
    return [
        f"# {number}. {goal.words}",
        *stage,
        f"reached{suffix} = {reached}",
        f"turn{suffix} = np.logical_not(reached{suffix}){before}",
        f"stage{suffix} = np.where(turn{suffix}, stage{suffix}, FAR)",
        "",
    ]


def _stage(goal: SubGoal, suffix: str) -> list[str]:
    """The lines that say how far one sub-goal is."""
    if goal.joint is not None:
        moved = f'moved{suffix} = fraction(state, "{goal.joint.joint}", {goal.joint.start!r}, {goal.joint.end!r})'
        return [moved, f'stage{suffix} = moving(state, moved{suffix}, "{goal.joint.handle}")']
    height, radius = grip(goal.target)
    place = f'state.objects["{goal.place}"].pos' if goal.at_object else f'state.places["{goal.place}"]'
    lines = [
        f"place{suffix} = {place}",
        f'stage{suffix} = {goal.kind}(state, "{goal.target}", place{suffix}, grip_height={height!r}, grip_radius={radius!r})',
    ]
    if goal.shut is not None:
        joint = goal.shut
        lines.append(f'opened{suffix} = fraction(state, "{joint.joint}", {joint.start!r}, {joint.end!r})')
        lines.append(f"stage{suffix} = np.where(opened{suffix} < NARROW, DROPPED, stage{suffix})")
    return lines


def _two_parts(goals: Sequence[SubGoal]) -> list[str]:
    """The lines that turn `progress` and `stage` into f1 + f2."""
    lines = ["on_the_way = progress < COMPLETE", "k = np.where(on_the_way, progress, 0)"]
    numbers = range(1, len(goals) + 1)
    suffixes = [f"_{n}" for n in numbers] if len(goals) > 1 else [""]
    for goal, suffix in zip(goals, suffixes, strict=True):
        same_object = "0" if goal.joint else f'object_hits(state, k, "{goal.target}", place{suffix})'
        offset = "0.0" if goal.joint else f'object_offset(state, k, "{goal.target}")'
        lines += [f"same_object{suffix} = {same_object}", f"same_hand{suffix} = hand_hits(state, k, {offset})"]
    if len(goals) > 1:
        lines.append(f"working = [{', '.join(f'turn_{n} & (stage_{n} == stage)' for n in numbers)}]")
        for name in ("same_object", "same_hand"):
            lines.append(f"{name} = np.select(working, [{', '.join(f'{name}_{n}' for n in numbers)}], 0)")
    return [
        *lines,
        "f1 = np.array(LEVELS)[progress] + BONUS * np.where(on_the_way, same_object, 0)",
        "f2 = BONUS * np.where(on_the_way, same_hand, 0)",
        "milestone = np.where(on_the_way, 3 * progress + same_object + same_hand, 2 * COMPLETE + progress)",
        'return f1 + f2, {"milestone": milestone}',
    ]
