# ruff: noqa: E501
"""Programs that pass the check of the syntax and fail when they run: the message names the line, the moment and the remedy."""

import time

import numpy as np
import pytest

from stages.rewards.sandbox import Limits, RewardError, RewardProcess
from tests.hostile.sample import CONTEXT, GOOD, QUICK, body, module, moments

VECTORISED = "import numpy as np\nVECTORISED = True\ndef compute_reward(state, info):\n    n = len(state.step)\n    "

# name, source, line, words
ATTACKS = [
    ("nested loops", body("for i in range(1000):", "  for j in range(1000):", "    for k in range(1000):", "      x = k"), (5, 6, 7, 8), "of CPU time for 5 moments"),
    ("list that grows in its loop", body("a = [1]", "b = a", "for x in a:", "    b.append(x)"), (7, 8), "of CPU time|of memory"),
    ("comprehension", body("x = sum(k for i in range(999) for j in range(999) for k in range(999))"), (5,), "of CPU time"),
    ("large numbers", body("x = 3", "for i in range(1000):", "    x = x * x"), (7,), "of CPU time"),
    ("large matrix", body("x = np.ones((900, 900))", "for i in range(1000):", "    y = x @ x"), (7,), "of CPU time"),
    ("huge array", body("x = np.ones(900000000)"), (5,), "needs more than 512 MiB of memory at moment 0"),
    ("huge repetition", body("x = np.repeat(1.0, 900000000)"), (5,), "of memory"),
    ("huge text", body("x = 'a' * 1000", "for i in range(9):", "    x = x.replace('a', x)"), (7,), "of memory"),
    ("huge list", body("x = list((1, 2)) * 1000", "for i in range(1000):", "    x.extend(x)"), (7,), "of CPU time|of memory"),
    ("huge module", module("X = np.ones(900000000)"), (3,), "needs more than 512 MiB of memory"),
    ("kept iterator", module("B = {'a': 1}.items()"), (3,), "the module keeps 'B'"),
    ("kept objects", module("", "A = np.array([[1], [2, 3]], dtype=list)"), (4,), "the module keeps 'A'"),
    ("text of an error", body("z = [1.0]", "for i in range(60):", "    z = [z, z]", "raise ValueError(z)"), (8,), "fails at moment 0: ValueError; "),
    ("float beyond a group's", body("return 1e300"), (5,), "returns 1e+300 for the reward"),
    ("vectorised: beyond a group's", VECTORISED + "return np.full(n, 1e300)", (5,), "returns 1e+300 for the reward at moment 0"),
    ("slow module", module("X = sum(k for i in range(999) for j in range(999) for k in range(999))"), (3,), "of CPU time to be loaded"),
    ("error in the module", module("X = {'a': 1}['b']"), (3,), "fails while it is loaded: KeyError: 'b'"),
    ("frozen list", module("A = [1]", "def f():", "    b = A", "    b.append(1)") .replace("return 0.0", "f()\n    return 0.0"), (6,), "fails at moment 0: AttributeError"),
    ("frozen dict", module("A = {'x': 1}", "def f():", "    b = A", "    b['x'] = 2").replace("return 0.0", "f()\n    return 0.0"), (6,), "fails at moment 0: TypeError"),
    ("frozen array", module("A = np.zeros(3)", "def f():", "    b = A", "    b[0] = 2").replace("return 0.0", "f()\n    return 0.0"), (6,), "fails at moment 0: ValueError: assignment destination is read-only"),
    ("frozen default", module("A = [1]", "def f(b=A):", "    b.append(1)").replace("return 0.0", "f()\n    return 0.0"), (5,), "fails at moment 0: AttributeError"),
    ("frozen state", body("p = state.ee_pos", "p += 1"), (6,), "read-only"),
    ("frozen objects", body("o = state.objects", "o['butter_1'] = 1"), (6,), "does not support item assignment"),
    ("frozen record", body("o = state.objects['butter_1']", "o[0] = 1"), (6,), "does not support item assignment"),
    ("error at a moment", body("if state.step == 3:", "    return state.objects['nothing'].lift"), (6,), "fails at moment 3: KeyError: 'nothing'"),
    ("error in a helper", module("def f(x):", "    return 1 / x").replace("return 0.0", "return f(state.step - 2)"), (4,), "fails at moment 2: ZeroDivisionError"),
    ("NaN", body("if state.step == 2:", "    return float('nan')"), (6,), "returns nan for the reward at moment 2"),
    ("infinity", body("return -np.inf"), (5,), "returns -inf for the reward at moment 0"),
    ("text", body("return 'high'"), (5,), "returns the text 'high' for the reward"),
    ("nothing", body("if state.step == 1:", "    return"), (6,), "returns None for the reward at moment 1"),
    ("nothing at the end", "def compute_reward(state, info):\n    x = 1", (2,), "returns None for the reward"),
    ("bool", body("return info.task_success"), (5,), "of type bool for the reward"),
    ("numpy's bool", body("return state.ee_pos[0] > 9"), (5,), "for the reward at moment 0"),
    ("array", body("return state.ee_pos"), (5,), "returns an array of shape (3,) and type float64 for the reward"),
    ("array of one", body("return state.ee_pos[:1]"), (5,), "returns an array of shape (1,)"),
    ("complex", body("return (-1.0) ** 0.5"), (5,), "returns complex for the reward"),
    ("huge integer", body("x = 10", "for i in range(10):", "    x = x * x", "return x"), (8,), "returns an integer beyond all floats"),
    ("list", body("return [1.0]"), (5,), "returns list for the reward"),
    ("function's dict alone", body("return {'milestone': 1}"), (5,), "returns dict for the reward"),
    ("three values", body("return 1.0, {}, 2"), (5,), "returns a tuple that is not (reward, dict): 3 values"),
    ("milestone beside", body("return 1.0, 2"), (5,), "returns a tuple that is not (reward, dict)"),
    ("misspelt milestone", body("return 1.0, {'milestones': 2}"), (5,), "returns a dict without 'milestone'"),
    ("milestone too high", body("return 1.0, {'milestone': 128}"), (5,), "returns the milestone 128"),
    ("milestone below", body("return 1.0, {'milestone': -1}"), (5,), "returns the milestone -1"),
    ("fraction of a milestone", body("return 1.0, {'milestone': 1.5}"), (5,), "returns 1.5 of type float for the milestone"),
    ("name of a milestone", body("return 1.0, {'milestone': 'far'}"), (5,), "returns the text 'far' for the milestone"),
    ("bool as milestone", body("return 1.0, {'milestone': True}"), (5,), "returns True of type bool for the milestone"),
    ("vectorised: scalar", VECTORISED + "return 1.0", (5,), "returns 1.0 of type float instead of an array (5,) for the reward"),
    ("vectorised: shape", VECTORISED + "return np.zeros((n, 1))", (5,), "returns an array of shape (5, 1) instead of (5,)"),
    ("vectorised: NaN", VECTORISED + "return np.where(state.step == 3, np.nan, 1)", (5,), "returns nan for the reward at moment 3"),
    ("vectorised: bools", VECTORISED + "return state.step > 3", (5,), "returns an array of bool for the reward"),
    ("vectorised: float milestones", VECTORISED + "return np.zeros(n), {'milestone': np.zeros(n)}", (5,), "returns an array of float64 for the milestone"),
    ("vectorised: milestone too high", VECTORISED + "return np.zeros(n), {'milestone': 126 + state.step}", (5,), "returns the milestone 128 at moment 2"),
    ("vectorised: error", VECTORISED + "if state.step > 3:\n        return 1", (5,), "fails: ValueError"),
]  # fmt: skip


@pytest.mark.parametrize(("source", "lines", "words"), [row[1:] for row in ATTACKS], ids=[row[0] for row in ATTACKS])
def test_ends_with_the_line(source: str, lines: tuple[int, ...], words: str) -> None:
    with pytest.raises(RewardError) as caught, RewardProcess(source, "reward.py", CONTEXT, QUICK) as process:
        process.score(moments(5))
    message = str(caught.value)
    assert any(word in message for word in words.split("|")), message
    assert caught.value.line in lines, message
    assert "\n" not in message and message.startswith("reward.py, line ")


def test_the_moment_is_counted_over_all_batches() -> None:
    source = body("if state.step == 1537:", "    return 1.0 / 0")
    with (
        pytest.raises(RewardError, match="fails at moment 1537") as caught,
        RewardProcess(source, "r.py", CONTEXT) as p,
    ):
        p.score(moments(2000))
    assert caught.value.line == 6


def test_the_next_call_starts_afresh() -> None:
    with RewardProcess(body("if state.max_steps < state.step:", "    return 1 / 0"), "r.py", CONTEXT) as process:
        state = moments(400)
        with pytest.raises(RewardError, match="moment 301"):
            process.score(state)
        assert (process.score({name: column[:200] for name, column in state.items()}).reward == 0).all()


def test_large_limits_let_slow_programs_pass() -> None:
    slow = body("x = sum(k for j in range(999) for k in range(999))")
    with RewardProcess(slow, "slow.py", CONTEXT, Limits(cpu_seconds=20.0)) as process:
        assert process.score(moments(2)).seconds > 0.01


def test_moments_of_another_task_are_an_error_of_the_caller() -> None:
    with RewardProcess(GOOD, "good.py", CONTEXT) as process:
        state = moments(3)
        with pytest.raises(ValueError, match="object_pos has the shape"):
            process.score({**state, "object_pos": state["object_pos"][:, :2]})
        with pytest.raises(ValueError, match="moments have"):
            process.score({"step": state["step"]})


def _loop() -> float:
    """CPU seconds of 200,000 steps of Python."""
    began = time.process_time()
    sum(i * i for i in range(200_000))
    return time.process_time() - began


def test_speed() -> None:
    """50 microseconds of CPU time a moment, making the states included, where the loop beside it takes 12.2 ms.

    Both are slower by as much when a neighbour shares the processor.
    """
    state = moments(5000)
    with RewardProcess(GOOD, "good.py", CONTEXT) as process:
        assert process._connection
        process.score(state)
        took, scaled = [], []
        for _ in range(3):
            loop = _loop()
            before, here = process._connection._cpu(), time.process_time()
            scored = process.score(state)
            took.append((process._connection._cpu() - before + time.process_time() - here) / 5000)
            scaled.append(took[-1] * 12.2e-3 / ((loop + _loop()) / 2))
        assert 0 < scored.seconds / 5000 < min(took), took
        assert min(scaled) < 50e-6, (took, scaled)
        assert np.isfinite(scored.reward).all()
