"""Runs a reward program over whole trajectories: makes the moments that it reads out of recorded scenes.

A trajectory is scored when it has ended. Nothing but the recorded scenes decides its rewards, so that a stored one can be
scored again at any time, with the same result to the last bit.
"""

import re
from collections.abc import Callable
from types import TracebackType
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from stages.errors import MismatchError
from stages.rewards.errors import RewardError
from stages.rewards.interface import Context, Moments, moment_dtype
from stages.rewards.program import Reward
from stages.rewards.sandbox import Limits, RewardProcess, Scored
from stages.types import Scene, SceneNames


class Program(Protocol):
    """A reward program at work."""

    def score(self, moments: Moments) -> Scored: ...


class Scorer:
    """A reward at work for one command: its program runs in one sandbox process, which serves all trajectories.

    The process starts with the first trajectories, and anew when the context changes. Use it as a context manager, or call
    `close`.
    """

    def __init__(self, reward: Reward, limits: Limits | None = None) -> None:
        self.reward = reward
        self._limits = limits
        self._context: Context | None = None
        self._process: RewardProcess | None = None

    def on(
        self, task: str, names: SceneNames, max_steps: int
    ) -> Callable[[Scene, Scene, NDArray[np.int16]], tuple[NDArray[np.float32], NDArray[np.int8]]]:
        """What scores trajectories of a task, as `score` does: (initial, scenes, env_steps) -> reward, milestone.

        Args:
            task: its id.
            max_steps: environment steps at which an episode without success ends.

        Raises:
            MismatchError: the reward was written for another task.
        """
        if self.reward.task not in ("", task):
            raise MismatchError(
                f"{self.reward.path} is a reward for {self.reward.task}, and the task is {task}; write one for this task with "
                f"`tgrpo gen-reward --task {task}`"
            )
        context = make_context(task, names, max_steps, self.reward)
        return lambda initial, scenes, env_steps: self.score(context, initial, scenes, env_steps)

    def score(
        self, context: Context, initial: Scene, scenes: Scene, env_steps: NDArray[np.int16]
    ) -> tuple[NDArray[np.float32], NDArray[np.int8]]:
        """As `score_trajectories`, for a task of this context."""
        if self._process is None or context != self._context:
            self.close()
            self._process = RewardProcess(self.reward.source, self.reward.path, context, self._limits)
            self._context = context
        return score_trajectories(self._process, initial, scenes, env_steps)

    def close(self) -> None:
        """Ends the process. May be called twice."""
        if self._process is not None:
            self._process.close()
            self._process = None

    def __enter__(self) -> "Scorer":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def make_context(task: str, names: SceneNames, max_steps: int, reward: Reward | None = None) -> Context:
    """What a program is told of a task, with the key poses of the reward that it belongs to."""
    return Context(
        task=task,
        object_names=names.object_names,
        joint_names=names.joint_names,
        joint_ranges=names.joint_ranges,
        place_names=names.place_names,
        goals=names.goals,
        max_steps=max_steps,
        key_poses=reward.key_poses if reward else (),
    )


def score_trajectories(
    program: Program, initial: Scene, scenes: Scene, env_steps: NDArray[np.int16]
) -> tuple[NDArray[np.float32], NDArray[np.int8]]:
    """Scores trajectories of one start.

    Args:
        program: made for the task of these scenes.
        initial: the settled start, no leading axes; lifts are measured from there.
        scenes: after every decision, leading axes (G, T).
        env_steps: (G, T) run for every decision; 0 where none was taken, and those are not scored.

    Returns:
        reward and milestone, (G, T), 0 where no decision was taken.

    Raises:
        RewardError: the program failed, gave no finite number, or broke a limit.
    """
    taken = env_steps > 0
    reward, milestone = np.zeros(taken.shape, np.float32), np.zeros(taken.shape, np.int8)
    if taken.any():
        try:
            scored = program.score(moments(initial, scenes, env_steps))
        except RewardError as error:
            raise _placed(error, env_steps) from None
        reward[taken], milestone[taken] = scored.reward, scored.milestone
    return reward, milestone


def _placed(error: RewardError, env_steps: NDArray[np.int16]) -> RewardError:
    """With the trajectory, the decision and the environment step in place of the moment's number."""
    found = re.search(r"\bmoment (\d+)", error.finding)
    rows = np.argwhere(env_steps > 0)
    if found is None or int(found[1]) >= len(rows):
        return error
    i, t = rows[int(found[1])].tolist()
    place = f"trajectory {i}, decision {t} (step {int(env_steps[i, : t + 1].sum())})"
    return RewardError(error.path, error.line, error.finding.replace(found[0], place), error.remedy)


def moments(initial: Scene, scenes: Scene, env_steps: NDArray[np.int16]) -> Moments:
    """What a program reads after each decision taken, one trajectory after the other; arguments as `score_trajectories`."""
    taken = env_steps > 0
    count = int(taken.sum())
    lift = scenes.object_pos[..., 2] - initial.object_pos[:, 2]
    # Up to and including each moment; an object that never left its place has risen by 0.
    peak = np.maximum.accumulate(np.where(taken[..., None], np.maximum(lift, 0.0), 0.0), axis=1)
    here, gripper = scenes[taken], scenes.gripper_qpos[taken]
    found = {
        "ee_pos": here.ee_pos,
        "ee_quat": here.ee_quat,
        "gripper_opening": gripper[:, 0] - gripper[:, 1],
        "object_pos": here.object_pos,
        "object_quat": here.object_quat,
        "object_lin_vel": here.object_lin_vel,
        "object_ang_vel": here.object_ang_vel,
        "object_initial_pos": _repeated(initial.object_pos, count),
        "object_initial_quat": _repeated(initial.object_quat, count),
        "object_peak_lift": peak[taken],
        "object_grasped": here.grasped,
        "object_touched": here.touched,
        "joint_pos": here.joint_pos,
        "joint_initial_pos": _repeated(initial.joint_pos, count),
        "place_pos": here.place_pos,
        "goal_holds": here.goal,
        "step": np.cumsum(env_steps, axis=1, dtype=np.int64)[taken],
        "task_success": here.success,
    }
    return {name: np.ascontiguousarray(values, moment_dtype(name)) for name, values in found.items()}


def _repeated(values: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    return np.broadcast_to(values, (count, *values.shape))
