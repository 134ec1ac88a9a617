"""The distances at which milestones change."""

from dataclasses import dataclass

from stages.params import GenRewardParams


@dataclass(frozen=True)
class Thresholds:
    """In metres; see `gen_reward` in params.

    Attributes:
        near: hand to grip, closer is ready.
        approach: hand to grip, closer is approaching.
        lift: an object's height above its start, higher is lifted.
        above: object to place, horizontally, closer is above it; twice that is near it.
    """

    near: float = 0.05
    approach: float = 0.15
    lift: float = 0.05
    above: float = 0.07

    @classmethod
    def of(cls, params: GenRewardParams) -> "Thresholds":
        return cls(params.near_m, params.approach_m, params.lift_m, params.above_m)
