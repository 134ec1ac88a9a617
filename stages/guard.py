"""When a run of `tgrpo train` ends, and which of its checkpoints it keeps. Decisions on numbers; nothing is run or read.

A run ends as
  completed   after `train.iterations`
  solved      validation success of `guard.solved`, or nothing left to learn because all trajectories succeed
  stuck       `guard.patience` validations without a new best, or nothing to learn from because no returns differ
  kl          farther than `guard.max_kl` from the reference policy
  entropy     less than `guard.min_entropy` left in the policy
  diverged    a loss, a gradient or the policy's distances became NaN or infinite
The last three are trouble: the checkpoint that showed it is never kept.

Progress is judged on validation states only: start states of the placement sampler that training does not use. The
official ones are for the report alone. Every decision depends on what is on disk, so a resumed run takes the same.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from stages.params import GuardParams

Kind = Literal["completed", "solved", "stuck", "kl", "entropy", "diverged"]
Keep = Literal["near_best", "best", "last"]
TROUBLE: tuple[Kind, ...] = ("kl", "entropy", "diverged")

Row = Mapping[str, float]  # an iteration's line of the history, see stages/history.py


@dataclass(frozen=True)
class Validation:
    """Success on the validation states after iteration `iteration` of a run; 0 is the checkpoint that it started from."""

    iteration: int
    successes: int
    episodes: int  # those that the simulator brought to an end

    @property
    def success_rate(self) -> float:
        return self.successes / self.episodes

    @property
    def standard_error(self) -> float:
        """Of the success rate; two successes and two failures are added (Agresti & Coull 1998), so that 64/64 has one too."""
        rate = (self.successes + 2) / (self.episodes + 4)
        return math.sqrt(rate * (1 - rate) / (self.episodes + 4))

    def __str__(self) -> str:
        return f"{self.successes}/{self.episodes}"


@dataclass(frozen=True)
class Ending:
    """How a run ended."""

    kind: Kind
    iteration: int  # the last one that ran; of a diverged run it may have left no checkpoint
    why: str  # half a sentence

    @property
    def last_good(self) -> int:
        """The last iteration whose checkpoint may be kept."""
        return self.iteration - 1 if self.kind in TROUBLE else self.iteration


def trouble(row: Row, guard: GuardParams, iteration: int) -> Ending | None:
    """What is wrong after an update, from its line of the history: `kl_end` and `entropy_end`, in nats a token.

    Args:
        iteration: of the run, from 1.
    """
    if not row["updates"]:
        return None  # the weights are those of the iteration before
    kl, entropy = row["kl_end"], row["entropy_end"]
    if not (math.isfinite(kl) and math.isfinite(entropy)):
        return Ending("diverged", iteration, f"KL {kl} and entropy {entropy} after the update")
    if kl > guard.max_kl:
        return Ending(
            "kl", iteration, f"KL {kl:.3g} to the reference, above train.guard.max_kl = {guard.max_kl:g} nats a token"
        )
    if entropy < guard.min_entropy:
        return Ending(
            "entropy",
            iteration,
            f"entropy {entropy:.3g}, below train.guard.min_entropy = {guard.min_entropy:g} nats a token",
        )
    return None


def idle(rows: Sequence[Row], guard: GuardParams) -> Ending | None:
    """Whether the last `guard.idle` iterations had nothing to learn from.

    When all trajectories succeed, or when no group's returns differ, sampling more of the same would go on for ever.

    Args:
        rows: the run's own lines of the history, in order; the last is of iteration len(rows).
    """
    if guard.idle == 0 or len(rows) < guard.idle:
        return None
    last = rows[-guard.idle :]
    if all(row["success"] == 1 for row in last):
        return Ending("solved", len(rows), f"every trajectory of the last {guard.idle} iterations succeeded")
    if all(row["groups_used"] == 0 for row in last):
        return Ending("stuck", len(rows), f"no group of the last {guard.idle} iterations had anything to learn from")
    return None


def judge(validations: Sequence[Validation], guard: GuardParams) -> Ending | None:
    """Whether the newest validation ends the run.

    Args:
        validations: in order of their iterations, at least one.
    """
    newest, top = validations[-1], best(validations)
    if newest.success_rate >= guard.solved:
        return Ending("solved", newest.iteration, f"{newest} on the validation states")
    since = sum(v.iteration > top.iteration for v in validations)
    if 0 < guard.patience <= since:
        return Ending(
            "stuck", newest.iteration, f"{since} validations without more than {top} of iteration {top.iteration}"
        )
    return None


def best(validations: Sequence[Validation]) -> Validation:
    """The highest success rate; the earlier one of equals.

    A tie is no sign of progress, and the earlier checkpoint is the nearer to the reference policy. The return does not
    break ties: it grows with every step that an episode lasts, so a quick success has less of it than a slow one.
    """
    return max(validations, key=lambda v: (v.success_rate, -v.iteration))


def near_best(validations: Sequence[Validation]) -> Validation:
    """The latest that is no worse than the best by more than one standard error of the best.

    The highest of several noisy rates is the luckiest of them, and an early one is as likely to be lucky as a late one. What
    a single validation cannot tell from the best counts as equal to it, and of equals the one that has trained longest is
    taken (the one-standard-error rule of Breiman et al. 1984, turned towards training).
    """
    top = best(validations)
    enough = top.success_rate - top.standard_error
    return max((v for v in validations if v.success_rate >= enough), key=lambda v: v.iteration)


def kept(validations: Sequence[Validation], ending: Ending, keep: Keep) -> int:
    """The iteration whose checkpoint is evaluated at the end, 0 for the start.

    Chosen by validation among those before any trouble: `near_best` or `best`. The last of these with `keep: last`, or
    without validations.
    """
    candidates = [v for v in validations if v.iteration <= ending.last_good]
    if keep == "last" or not candidates:
        return ending.last_good
    return (near_best(candidates) if keep == "near_best" else best(candidates)).iteration


def due(iteration: int, last: int, every: int) -> bool:
    """Whether validation follows this iteration: the start, every `every`-th, and the last. Never with `every` = 0."""
    return every > 0 and (iteration % every == 0 or iteration == last)
