"""In which portions an optimiser update takes the decisions: `update.schedule`."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from stages.decisions import Decisions

Schedule = Literal["step", "minibatch", "group", "trajectories"]


@dataclass(frozen=True)
class Batch:
    """The decisions of one optimiser update."""

    rows: NDArray[np.int64]  # of `Decisions`
    share: float  # factor on the mean over the rows, see `batches`


def batches(decisions: Decisions, schedule: Schedule, minibatch: int, generator: torch.Generator) -> list[Batch]:
    """One pass over all decisions.

    The objective is a mean over all N decisions. A random minibatch's own mean is an unbiased estimate of it. A batch that is
    chosen by its place in the trajectories is not: late steps have fewer decisions, and their plain means would count for
    more than the objective gives them. There the mean is scaled by n_batch / (N / batches), so that over the pass the
    batches average to the objective itself.

    Args:
        schedule: "minibatch", shuffled; "step", all groups' decisions at t, in order of t (Algorithm 1); "group", everything
            at once; "trajectories", whole groups of trajectories, one after the other in random order.
        minibatch: decisions of a minibatch; the last ones are evened out.
    """
    n = len(decisions)
    if schedule == "minibatch":
        order = torch.randperm(n, generator=generator).numpy()
        return [Batch(rows, 1.0) for rows in np.array_split(order, -(-n // minibatch))]
    if schedule == "group":
        return [Batch(np.arange(n), 1.0)]
    key = decisions.step if schedule == "step" else decisions.group
    places = np.unique(key)
    if schedule == "trajectories":
        places = places[torch.randperm(len(places), generator=generator).numpy()]
    chosen = [np.flatnonzero(key == place) for place in places]
    return [Batch(rows, len(rows) * len(chosen) / n) for rows in chosen]
