"""What a reward program reads and returns: `compute_reward(state, info) -> (reward, milestone)`.

A program is a pure function of one time step. What it would have to remember (where the object started, how high it
has been) is part of `state`, so any stored trajectory can be scored again, in any order and all at once.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class RewardState:
    """The world after one decision. Any leading axes (...); metres, world frame."""

    ee_pos: Floats  # (..., 3) the grip site between the fingers
    target_pos: Floats  # (..., 3) the object to move
    container_pos: Floats  # (..., 3) where it has to go
    grasped: Bools  # (...) both finger pads touch the target
    lift: Floats  # (...) height of the target above its start
    peak_lift: Floats  # (...) the largest `lift` of this trajectory so far


@dataclass(frozen=True)
class RewardInfo:
    task_success: Bools  # (...) LIBERO's own goal predicate


RewardProgram = Callable[[RewardState, RewardInfo], tuple[Floats, NDArray[np.int8]]]
