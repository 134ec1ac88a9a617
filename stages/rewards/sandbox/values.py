"""Judges what a program returned. Runs in the child, where the line of the `return` can still be found."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

MAX_MILESTONE = 127
MAX_REWARD = float(np.finfo(np.float32).max)  # groups keep float32


class BadValue(Exception):
    """What was returned instead of a reward; `index` is that of the moment in a vectorised answer."""

    def __init__(self, what: str, index: int | None = None) -> None:
        super().__init__(what)
        self.what, self.index = what, index


def one(value: Any) -> tuple[float, int]:
    """The answer for one moment as reward and milestone.

    Raises:
        BadValue: it is none.
    """
    if type(value) is float and -MAX_REWARD <= value <= MAX_REWARD:  # neither NaN nor infinite
        return value, 0
    reward, milestone = _split(value)
    if isinstance(reward, np.ndarray) and reward.ndim == 0:
        reward = reward[()]
    if isinstance(reward, bool | np.bool_) or not isinstance(reward, int | float | np.floating | np.integer):
        raise BadValue(f"returns {_named(reward)} for the reward")
    try:
        number = float(reward)
    except OverflowError:
        raise BadValue("returns an integer beyond all floats for the reward") from None
    if not -MAX_REWARD <= number <= MAX_REWARD:
        raise BadValue(f"returns {number} for the reward")
    if milestone is None:
        return number, 0
    if isinstance(milestone, np.ndarray) and milestone.ndim == 0:
        milestone = milestone[()]
    if isinstance(milestone, bool | np.bool_) or not isinstance(milestone, int | np.integer):
        raise BadValue(f"returns {_named(milestone)} for the milestone")
    if not 0 <= milestone <= MAX_MILESTONE:
        raise BadValue(f"returns the milestone {_short(milestone)}")
    return number, int(milestone)


def many(value: Any, moments: int) -> tuple[NDArray[np.float64], NDArray[np.int16]]:
    """The answer of a vectorised program as reward (n,) and milestone (n,).

    Raises:
        BadValue: it is none.
    """
    reward, milestone = _split(value)
    rewards = _array(reward, moments, "reward", "fiu").astype(np.float64)
    bad = np.flatnonzero(~(np.abs(rewards) <= MAX_REWARD))  # NaN too
    if bad.size:
        raise BadValue(f"returns {rewards[bad[0]]} for the reward", int(bad[0]))
    if milestone is None:
        return rewards, np.zeros(moments, np.int16)
    milestones = _array(milestone, moments, "milestone", "iu")
    bad = np.flatnonzero((milestones < 0) | (milestones > MAX_MILESTONE))
    if bad.size:
        raise BadValue(f"returns the milestone {milestones[bad[0]]}", int(bad[0]))
    return rewards, milestones.astype(np.int16)


def _split(value: Any) -> tuple[Any, Any]:
    if not isinstance(value, tuple):
        return value, None
    if len(value) != 2 or not isinstance(value[1], dict):
        raise BadValue(f"returns a tuple that is not (reward, dict): {_named(value)}")
    if "milestone" not in value[1]:
        raise BadValue("returns a dict without 'milestone'")
    return value[0], value[1]["milestone"]


def _array(value: Any, moments: int, name: str, kinds: str) -> NDArray[Any]:
    if not isinstance(value, np.ndarray):
        raise BadValue(f"returns {_named(value)} instead of an array ({moments},) for the {name}")
    if value.shape != (moments,):
        raise BadValue(f"returns an array of shape {value.shape} instead of ({moments},) for the {name}")
    if value.dtype.kind not in kinds:
        raise BadValue(f"returns an array of {value.dtype} for the {name}")
    return value


def _named(value: Any) -> str:
    if value is None:
        return "None"
    if isinstance(value, np.ndarray):
        return f"an array of shape {value.shape} and type {value.dtype}"
    if isinstance(value, tuple):
        return f"{len(value)} values"
    if isinstance(value, str):
        return f"the text {value[:40]!r}"
    return (
        f"{_short(value)} of type {type(value).__name__}"
        if isinstance(value, bool | float | int)
        else type(value).__name__
    )


def _short(number: Any) -> str:
    try:
        return str(number)[:40]
    except ValueError:  # an integer of thousands of digits
        return "a huge integer"
