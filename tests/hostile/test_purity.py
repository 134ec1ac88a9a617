# ruff: noqa: E501
"""Scored again in a fresh interpreter and another order, a program says the same; else it is refused."""

import pytest

from stages.rewards.sandbox import RewardError, RewardProcess
from tests.hostile.sample import CONTEXT, GOOD, moments

# Raw Python: the check of the syntax lets none of these pass.
IMPURE = {
    "module's list": "SEEN = []\ndef compute_reward(state, info):\n    SEEN.append(1)\n    return float(len(SEEN))",
    "default argument": "def compute_reward(state, info, seen=[0]):\n    seen[0] += 1\n    return float(seen[0])",
    "function's attribute": "def compute_reward(s, i):\n    compute_reward.n += 1\n    return float(compute_reward.n)\ncompute_reward.n = 0",
    "module's array": "import numpy as np\nA = np.zeros(1)\ndef compute_reward(s, i):\n    A[0] += s.ee_pos[0]\n    return A[0]",
    "closure": "def make():\n    n = [0]\n    def f(s, i):\n        n[0] += 1\n        return float(n[0])\n    return f\ncompute_reward = make()",
    "number of the process": "import os\ndef compute_reward(state, info):\n    return float(os.getpid())",
    "hash of a text": "def compute_reward(state, info):\n    return float(hash(state.target) % 1000003)",
    "order of a set": "def compute_reward(state, info):\n    return float(sum(len(n) * i * i for i, n in enumerate({*state.objects})))",
    "address": "def compute_reward(state, info):\n    return float(id(compute_reward) % 1000003)",
    "clock": "import time\ndef compute_reward(state, info):\n    return time.monotonic()",
    "vectorised, remembers": "VECTORISED = True\nimport numpy as np\nn = [0]\ndef compute_reward(s, i):\n    n[0] += 1\n    return np.full(s.step.shape, float(n[0]))",
}


@pytest.mark.parametrize("source", IMPURE.values(), ids=IMPURE.keys())
def test_impure_programs_are_found(source: str) -> None:
    with RewardProcess._unchecked(source, "raw.py", CONTEXT) as process:
        process.score(moments(20))
        with pytest.raises(RewardError, match="when all are scored again; compute from `state`"):
            process.score(moments(20), check_purity=True)


@pytest.mark.parametrize(
    ("expression", "moment"),
    [
        ("state.step - np.mean(state.step)", 0),
        ("np.sort(state.ee_pos[:, 0])", 0),
        ("np.linalg.norm(state.ee_pos) + 0 * state.step", 0),
    ],
)
def test_a_vectorised_program_that_mixes_moments_is_found(expression: str, moment: int) -> None:
    source = f"import numpy as np\nVECTORISED = True\ndef compute_reward(state, info):\n    return {expression}"
    with (
        RewardProcess(source, "v.py", CONTEXT) as process,
        pytest.raises(RewardError, match=f"moment {moment} gets") as caught,
    ):
        process.check_vectorised(moments(30))
    assert caught.value.line == 3 and "among 30 moments" in caught.value.finding


def test_pure_programs_pass() -> None:
    with RewardProcess(GOOD, "good.py", CONTEXT) as process:
        process.score(moments(1300), check_purity=True)
        process.check_vectorised(moments(5))
