"""Runs a reward program along trajectories: as they happen, or over a stored group."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from stages.errors import MismatchError
from stages.rewards.interface import Floats, RewardInfo, RewardState
from stages.rewards.spec import RewardSpec
from stages.types import Scene


class Scorer:
    """Scores N trajectories of one task step by step. `reset` gives it the scenes they start from."""

    def __init__(self, spec: RewardSpec, object_names: Sequence[str]) -> None:
        """
        Raises:
            MismatchError: the reward speaks of an object that the task does not have.
        """
        for name in (spec.target, spec.container):
            if name not in object_names:
                raise MismatchError(
                    f"the reward is about {name!r}, but the task has {', '.join(object_names)}; "
                    "write one for this task with `tgrpo gen-reward`"
                )
        self._program = spec.build()
        self._target = list(object_names).index(spec.target)
        self._container = list(object_names).index(spec.container)
        self._start_height: Floats | None = None
        self._peak_lift: Floats = np.zeros(0)

    def reset(self, scene: Scene) -> None:
        """Takes the settled initial scenes (N, ...) from which lifts are measured."""
        self._start_height = scene.object_pos[..., self._target, 2].copy()
        self._peak_lift = np.zeros_like(self._start_height)

    def score(self, scene: Scene) -> tuple[NDArray[np.float32], NDArray[np.int8]]:
        """Scores the scenes (N, ...) after one decision: reward (N,) and milestone (N,)."""
        assert self._start_height is not None, "reset first"
        target = scene.object_pos[..., self._target, :]
        lift = target[..., 2] - self._start_height
        self._peak_lift = np.maximum(self._peak_lift, lift)
        state = RewardState(
            ee_pos=scene.ee_pos,
            target_pos=target,
            container_pos=scene.object_pos[..., self._container, :],
            grasped=scene.grasped[..., self._target],
            lift=lift,
            peak_lift=self._peak_lift,
        )
        reward, milestone = self._program(state, RewardInfo(task_success=scene.success))
        return reward.astype(np.float32), milestone


def score_trajectories(
    spec: RewardSpec, object_names: Sequence[str], initial: Scene, scenes: Scene
) -> tuple[NDArray[np.float32], NDArray[np.int8]]:
    """Scores stored trajectories: `initial` without leading axes, `scenes` (G, T, ...); reward and milestone (G, T)."""
    scorer = Scorer(spec, object_names)
    trajectories, steps = scenes.success.shape
    scorer.reset(Scene.stack([initial] * trajectories))
    scored = [scorer.score(scenes[:, t]) for t in range(steps)]
    return np.stack([reward for reward, _ in scored], 1), np.stack([milestone for _, milestone in scored], 1)
