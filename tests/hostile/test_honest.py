"""What a model honestly writes passes, runs, and gives what it says."""

import numpy as np
import pytest

from stages.rewards.sandbox import RewardProcess, check_program, milestone_names
from tests.hostile.sample import CONTEXT, GOOD, RICH, body, module, moments

VECTORISED = """
import numpy as np

VECTORISED = True
LEVELS = [-2.0, 2.0, 8.0]


def compute_reward(state, info):
    target = state.objects[state.target]
    distance = np.linalg.norm(state.ee_pos - target.pos, axis=-1)
    reward = np.full(distance.shape, LEVELS[0])
    reward[distance < 0.5] = LEVELS[1]
    reward[target.lift > 0.2] += 1.0
    milestone = np.select([info.task_success, distance < 0.5], [2, 1], 0)
    return np.where(info.task_success, 16.0, reward), {"milestone": milestone}
"""

IDIOMS = {
    "powers": body("x = 2 ** 3 + state.ee_pos[0] ** 2 + 0.9 ** state.step"),
    "nested functions": body("def half(x):", "    return x / 2", "x = half(2.0)"),
    "unpacking": body("x, y, z = state.ee_pos", "(a, b), *c = ((1, 2), 3)"),
    "else of a loop": body("for i in range(3):", "    if i > 5:", "        break", "else:", "    x = 1"),
    "conditional import of nothing": module(
        "from math import sqrt, pi", "def f(x: float) -> float:", "    return sqrt(x) * pi"
    ),
    "walrus": body("if (d := abs(state.step)) > 3:", "    x = d"),
    "raise": body("if state.max_steps < 0:", "    raise ValueError('no steps')"),
    "assert": body("assert state.max_steps > 0, 'no steps'"),
    "members of a set": body("x = state.target in {'a', 'b'}"),
    "constants from constants": module(
        "A = 0.05", "B = 2 * A", "C = {'a': [A, B]}", "D = np.array([A, B]) * 2", "E = [i for i in range(3)]"
    ),
    "defaults by name": module("A = 0.05", "def f(x, limit=A, *rest, scale: float = 1.0):", "    return x"),
    "dict of arrays": body("d = {name: thing.pos for name, thing in state.objects.items()}", "d['x'] = 1"),
    "best of objects": body("x = min(state.objects.items(), key=lambda item: item[1].pos[2])[0]"),
    "sums of products": body(
        "x = sum(a * b for a, b in zip(state.ee_pos, state.ee_pos)) + sum([g.holds for g in state.goals])"
    ),
    "texts": body("x = [n for n in state.objects if n.startswith('butter') and 'basket' not in n]"),
    "quaternions": body(
        "q = state.ee_quat", "up = 1 - 2 * (q[0] ** 2 + q[1] ** 2)", "x = math.acos(max(-1.0, min(1.0, up)))"
    ),
    "key poses": body(
        "for k, pose in enumerate(state.key_poses):",
        "    x = np.linalg.norm(pose.ee_pos - state.ee_pos) + pose.object_pos['butter_1'][2]",
    ),
    "joints": body(
        "for name, joint in state.joints.items():", "    x = (joint.pos - joint.lower) / (joint.upper - joint.lower)"
    ),
    "kept from a mapping": body("x = state.objects.get('nothing')", "if x is not None:", "    y = x.pos"),
    "ellipsis": body("x = state.ee_pos[..., :2]"),
    "isinstance": body("x = float(state.step) if isinstance(state.step, int) else int(state.step)"),
    "types of arrays": body("x = np.asarray(state.ee_pos, dtype=np.float64).astype(float).astype('float32')"),
}


@pytest.mark.parametrize("source", IDIOMS.values(), ids=IDIOMS.keys())
def test_idioms_pass(source: str) -> None:
    check_program(source, "reward.py")


def test_they_all_run() -> None:
    # One program of all bodies, so that one process does.
    bodies = [
        "\n".join(source.splitlines()[4:-1])
        for source in IDIOMS.values()
        if source.splitlines()[3].startswith("def comp")
    ]
    with RewardProcess(
        body("pass").rsplit("\n", 1)[0] + "\n" + "\n".join(bodies) + "\n    return 1.5", "r.py", CONTEXT
    ) as process:
        assert (process.score(moments(3)).reward == 1.5).all()


ARRAY_METHODS = [
    "all()",
    "any()",
    "argmax()",
    "argmin()",
    "clip(0, 1)",
    "cumsum()",
    "dot(state.ee_pos)",
    "max()",
    "mean()",
]
ARRAY_METHODS += [
    "min()",
    "prod()",
    "ravel()",
    "reshape(3)",
    "round()",
    "squeeze()",
    "std()",
    "sum()",
    "tolist()",
    "var()",
]


@pytest.mark.parametrize("call", ARRAY_METHODS)
def test_the_methods_of_arrays_work_from_the_first_call_on(call: str) -> None:
    """numpy loads parts of itself when a method is first called."""
    with RewardProcess(body(f"x = state.ee_pos.{call}", "return 1.5"), "r.py", CONTEXT) as process:
        assert (process.score(moments(2)).reward == 1.5).all()


def test_a_milestone_can_be_looked_up_by_its_name() -> None:
    source = GOOD.replace('{"milestone": 1}', '{"milestone": MILESTONES.index("near")}')
    with RewardProcess(source, "r.py", CONTEXT) as looked_up, RewardProcess(GOOD, "g.py", CONTEXT) as counted:
        state = moments(50)
        np.testing.assert_array_equal(looked_up.score(state).milestone, counted.score(state).milestone)


def test_a_rich_program() -> None:
    with RewardProcess(RICH, "rich.py", CONTEXT) as process:
        scored = process.score(moments(200), check_purity=True)
    assert set(scored.milestone) == {0, 2} and np.isfinite(scored.reward).all() and scored.seconds > 0
    assert milestone_names(RICH) == ("far", "50% of the way", "placed")
    assert milestone_names(VECTORISED) == ()


def test_rewards_and_milestones_are_those_of_the_program() -> None:
    state = moments(300)
    with RewardProcess(GOOD, "good.py", CONTEXT) as process:
        scored = process.score(state)
        assert process.score({name: column[:0] for name, column in state.items()}).reward.shape == (0,)
    lift = state["object_pos"][:, 0, 2] - state["object_initial_pos"][:, 0, 2]
    distance = np.linalg.norm(state["ee_pos"] - state["object_pos"][:, 0], axis=-1)
    held, peak = state["object_grasped"][:, 0], state["object_peak_lift"][:, 0]
    above = np.linalg.norm((state["object_pos"][:, 0] - state["place_pos"][:, 0])[:, :2], axis=-1) < 0.1
    cases = [state["task_success"], (lift > 0.2) & (held | above), (peak > 0.2) & ~held, distance < 0.3]
    assert np.array_equal(scored.reward, np.select(cases, [16.0, 8.0, -4.0, 2.0], -2.0))
    assert np.array_equal(scored.milestone, np.select(cases, [3, 2, 4, 1], 0))
    assert (scored.reward.dtype, scored.milestone.dtype) == (np.float64, np.int16)


def test_vectorised_programs_get_all_moments_at_once() -> None:
    state = moments(500)
    with RewardProcess(VECTORISED, "v.py", CONTEXT) as process:
        scored = process.score(state, check_purity=True)
        process.check_vectorised(state)
    distance = np.linalg.norm(state["ee_pos"] - state["object_pos"][:, 0], axis=-1)
    assert np.array_equal(scored.milestone, np.select([state["task_success"], distance < 0.5], [2, 1], 0))


def test_many_moments_are_split_into_batches_without_a_seam() -> None:
    state = moments(3000)
    with RewardProcess(body("return float(state.step)"), "r.py", CONTEXT) as process:
        assert np.array_equal(process.score(state).reward, state["step"])
