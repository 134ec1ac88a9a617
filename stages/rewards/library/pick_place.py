"""PickAndPlaceInBasketReward: the multi-milestone reward that the paper prints as its LLM's answer (Algorithm 2).

The paper gives the levels -2, 2, 4, 8, 16 and -4 and names the thresholds without their values; the values here are
parameters. "Add rewards for approaching and being above basket" is read as two steps between 8 and 16.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stages.rewards.interface import Floats, RewardInfo, RewardState

FAR, APPROACHING, READY, LIFTED, TO_BASKET, ABOVE_BASKET, PLACED = -2.0, 2.0, 4.0, 8.0, 10.0, 12.0, 16.0
DROPPED = -4.0
MILESTONES = ("far", "approaching", "ready to grasp", "lifted", "placed", "dropped")


@dataclass(frozen=True)
class PickPlaceReward:
    """Algorithm 2 with its thresholds, in metres.

    near: end effector to target, closer is ready to grasp; approach: the same, closer is approaching; lift: target above
    its start, higher is lifted; above: horizontal target to basket, closer is above it, twice that is approaching it.
    """

    near: float
    approach: float
    lift: float
    above: float

    def __call__(self, state: RewardState, info: RewardInfo) -> tuple[Floats, NDArray[np.int8]]:
        """Scores one time step, or any batch of them.

        Returns:
            reward (...), one constant per milestone, and milestone (...), an index into `MILESTONES`.
        """
        to_target = np.linalg.norm(state.ee_pos - state.target_pos, axis=-1)
        to_basket = np.linalg.norm((state.target_pos - state.container_pos)[..., :2], axis=-1)
        lifted = state.lift > self.lift
        above = to_basket < self.above
        # Held, or let go over the basket and on its way down.
        carried = lifted & (state.grasped | above)
        dropped = (state.peak_lift > self.lift) & ~carried & ~(state.grasped & ~lifted)

        cases = [info.task_success, carried & above, carried & (to_basket < 2 * self.above), carried, dropped]
        rewards = [PLACED, ABOVE_BASKET, TO_BASKET, LIFTED, DROPPED]
        milestones = [4, 3, 3, 3, 5]
        cases += [to_target < self.near, to_target < self.approach]
        rewards += [READY, APPROACHING]
        milestones += [2, 1]
        return np.select(cases, rewards, FAR), np.select(cases, milestones, 0).astype(np.int8)
