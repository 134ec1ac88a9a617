"""Scored trajectories as the checks read them."""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Role = Literal["expert", "cut off", "drop", "other object", ""]


@dataclass(frozen=True)
class Trajectories:
    """N trajectories of one task, from several starts, padded to T decisions.

    Attributes:
        labels: what each is.
        kinds: success_expected, failure_expected or either.
        roles: what the checks compare it as.
        parts: of the expert's length that a cut-off goes on for; 1 for all others.
        starts: the initial state of each.
        taken: (N, T) a decision was taken; a prefix of true.
        reward: (N, T) of the state after each decision.
        milestone: (N, T) sub-goal reached after each decision.
        solved: (N, T) LIBERO's goal holds after it.
        prepared: (N, T) joints and predicates are as they are when the target is first held.
        held: (N, T) both finger pads touch the target.
        lift: (N, T) height of the target over its start, m.
        other_lift: (N, T) height of whichever other object has risen most over its start, m.
        reach: (N, T) from the grip site to the target's origin, m.
        horizon: decisions of an episode without success.
        goals: predicates of the task's goal.
        milestone_names: by index; may be empty.
        has_target: the goal names an object; without one `prepared`, `held`, `reach` and both lifts mean nothing.
    """

    labels: tuple[str, ...]
    kinds: tuple[str, ...]
    roles: tuple[Role, ...]
    parts: NDArray[np.float64]
    starts: tuple[str, ...]
    taken: NDArray[np.bool_]
    reward: NDArray[np.float64]
    milestone: NDArray[np.int64]
    solved: NDArray[np.bool_]
    prepared: NDArray[np.bool_]
    held: NDArray[np.bool_]
    lift: NDArray[np.float64]
    other_lift: NDArray[np.float64]
    reach: NDArray[np.float64]
    horizon: int
    goals: int = 1
    milestone_names: tuple[str, ...] = ()
    has_target: bool = True

    @classmethod
    def join(cls, groups: Sequence["Trajectories"]) -> "Trajectories":
        """All trajectories of several starts of one task."""
        longest = max(group.taken.shape[1] for group in groups)

        def joined(name: str) -> object:
            values = [getattr(group, name) for group in groups]
            if name in ("labels", "kinds", "roles", "starts"):
                return tuple(itertools.chain.from_iterable(values))
            if name == "parts":
                return np.concatenate(values)
            if isinstance(values[0], np.ndarray):
                return np.concatenate([np.pad(v, ((0, 0), (0, longest - v.shape[1]))) for v in values])
            return values[0]

        return cls(**{f.name: joined(f.name) for f in fields(cls)})  # type: ignore[arg-type]

    @property
    def length(self) -> NDArray[np.int64]:
        """(N,) decisions taken."""
        return self.taken.sum(axis=1)

    @property
    def success(self) -> NDArray[np.bool_]:
        """(N,) which ended in success."""
        return np.any(self.solved & self.taken, axis=1)

    @property
    def returns(self) -> NDArray[np.float64]:
        """(N,) the sum of rewards, where a success keeps its last one up to the horizon and a failure keeps nothing."""
        last = self.reward[np.arange(len(self.labels)), np.maximum(self.length - 1, 0)]
        held = np.where(self.success, np.maximum(self.horizon - self.length, 0), 0)
        return np.where(self.taken, self.reward, 0.0).sum(axis=1) + held * last

    def of(self, role: Role) -> list[int]:
        """The trajectories of a role."""
        return [i for i, other in enumerate(self.roles) if other == role]

    def experts(self) -> list[int]:
        """The expert's successes."""
        success = self.success
        return [i for i in self.of("expert") if success[i]]

    def expert_from(self, start: str) -> int | None:
        """The expert's success from a start."""
        return next((i for i in self.experts() if self.starts[i] == start), None)

    def levels(self) -> NDArray[np.float64]:
        """The different rewards that occur, rising."""
        return np.unique(rounded(self.reward[self.taken]))

    @property
    def gives_milestones(self) -> bool:
        """Whether the program says which sub-goal is reached."""
        return bool((self.milestone[self.taken] != 0).any())

    def milestone_name(self, index: int) -> str:
        """`lifted`, or its number where it has no name."""
        return self.milestone_names[index] if index < len(self.milestone_names) else f"milestone {index}"

    def name(self, i: int) -> str:
        """How messages call a trajectory."""
        return f"'{self.labels[i]}' from {self.starts[i]}"

    def story(self, i: int) -> str:
        """A trajectory's rewards in a line: `-2 x6, 2 x3, 16 x1`."""
        rewards = rounded(self.reward[i, : self.length[i]]).tolist()
        return ", ".join(f"{value:g} x{len(list(run))}" for value, run in itertools.groupby(rewards))


def rounded(reward: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rewards that differ by rounding errors alone are one level."""
    return np.round(reward, 6) + 0.0


def listed(values: Iterable[float], most: int = 12) -> str:
    """Numbers for a message: `-4, -2, 2 and 5 more`."""
    shown = [f"{value:g}" for value in values]
    return ", ".join(shown[:most]) + (f" and {len(shown) - most} more" if len(shown) > most else "")
