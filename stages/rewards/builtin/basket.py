"""The text of Algorithm 2 of the paper: one object into a basket."""

from stages.rewards.builtin.thresholds import Thresholds

_PROGRAM = '''"""{task}: put {target} into {basket}. Algorithm 2 of arXiv:2506.08440.

Not lifted: far -2, approaching 2, ready to grasp 4. Lifted 8, near the basket 10, above it 12. Placed 16. Dropped -4.
The paper gives the levels but for 10 and 12, of which it says "add rewards for approaching and being above basket".
"""

import numpy as np

VECTORISED = True
MILESTONES = (
    "far",
    "approaching",
    "ready to grasp",
    "lifted",
    "near the basket",
    "above the basket",
    "placed",
    "dropped",
)
FAR, APPROACHING, READY, LIFTED, NEAR_BASKET, ABOVE_BASKET, PLACED, DROPPED = 0, 1, 2, 3, 4, 5, 6, 7

NEAR = {near!r}  # m from the hand to the object: ready to grasp
APPROACH = {approach!r}  # m from the hand to the object: approaching
LIFT = {lift!r}  # m above where the object stood: lifted
ABOVE = {above!r}  # m from the object to the basket, horizontally: above it; twice that is near it


def compute_reward(state, info):
    target = state.objects["{target}"]
    basket = state.objects["{basket}"]

    to_target = np.linalg.norm(state.ee_pos - target.pos, axis=-1)
    to_basket = np.linalg.norm((target.pos - basket.pos)[..., :2], axis=-1)
    above = to_basket < ABOVE
    lifted = target.lift > LIFT
    carried = lifted & (target.grasped | above)  # held, or let go above the basket and on its way down
    held_low = target.grasped & np.logical_not(lifted)
    dropped = (target.peak_lift > LIFT) & np.logical_not(carried | held_low)

    conditions = [  # the first that holds counts
        info.task_success,
        carried & above,
        carried & (to_basket < 2 * ABOVE),
        carried,
        dropped,
        to_target < NEAR,
        to_target < APPROACH,
    ]
    reward = np.select(conditions, [16.0, 12.0, 10.0, 8.0, -4.0, 4.0, 2.0], -2.0)
    reached = [PLACED, ABOVE_BASKET, NEAR_BASKET, LIFTED, DROPPED, READY, APPROACHING]
    milestone = np.select(conditions, reached, FAR)
    return reward, {{"milestone": milestone}}
'''


def basket_program(task: str, target: str, basket: str, thresholds: Thresholds) -> str:
    """The program's source; `target` and `basket` are objects of the scene."""
    return _PROGRAM.format(
        task=task,
        target=target,
        basket=basket,
        near=thresholds.near,
        approach=thresholds.approach,
        lift=thresholds.lift,
        above=thresholds.above,
    )
