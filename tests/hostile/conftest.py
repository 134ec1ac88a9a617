"""After every attack the same parent goes on scoring an honest program."""

from collections.abc import Iterator

import numpy as np
import pytest

from stages.rewards.sandbox import RewardProcess
from tests.hostile.sample import CONTEXT, GOOD, moments


@pytest.fixture(scope="session")
def honest() -> Iterator[RewardProcess]:
    with RewardProcess(GOOD, "good.py", CONTEXT) as process:
        yield process


@pytest.fixture(scope="session")
def expected(honest: RewardProcess) -> np.ndarray:
    rewards = honest.score(moments(40)).reward
    assert {-2.0, 8.0, 16.0} <= set(rewards)
    return rewards


@pytest.fixture(autouse=True)
def unharmed(honest: RewardProcess, expected: np.ndarray) -> Iterator[None]:
    yield
    assert np.array_equal(honest.score(moments(40)).reward, expected)
