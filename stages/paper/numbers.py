"""What the documents report, as printed there: the paper (arXiv:2506.08440v1) and the post about it.

Rates are fractions, 0 to 1. Task n of the paper is libero_object/(n - 1): its table 2 lists LIBERO's own order.
"""

from collections.abc import Mapping
from dataclasses import dataclass

PAPER = "arXiv:2506.08440v1"
POST = "the post"
EPISODES = 50  # "each task was tested 50 times" (A.1.2)
BEST_OF = (
    "The paper trains several times for each task and reports the best score (A.1.3), of 50 episodes; how many trainings it "
    "does not say. Here every run that was asked for and has ended counts, and none is chosen."
)

OBJECT_TASKS = tuple(f"libero_object/{index}" for index in range(10))


def task_number(task: str) -> int | None:
    """The paper's number of a task, 1 to 10; None for tasks that it does not train on."""
    return OBJECT_TASKS.index(task) + 1 if task in OBJECT_TASKS else None


@dataclass(frozen=True)
class Reported:
    """A number of the documents: a success rate, and where it stands."""

    rate: float
    source: str


def _percent(source: str, *values: float) -> tuple[Reported, ...]:
    return tuple(Reported(value / 100, source) for value in values)


_TABLE_1 = f"{PAPER}, table 1"

# Tasks 1 to 10. "w/o Ti" is the step level alone, "w/o Si,t" the trajectory level alone.
TABLE_1: Mapping[str, tuple[Reported, ...]] = {
    "base": _percent(_TABLE_1, 76, 70, 90, 74, 92, 90, 98, 92, 90, 92),
    "tgrpo": _percent(_TABLE_1, 78, 86, 92, 76, 98, 94, 98, 98, 94, 96),
    "tgrpo_no_t": _percent(_TABLE_1, 88, 60, 86, 18, 92, 82, 92, 92, 92, 34),
    "tgrpo_no_s": _percent(_TABLE_1, 78, 78, 98, 58, 94, 82, 96, 96, 92, 96),
}

# Means over the ten tasks of LIBERO-Object.
OBJECT_MEANS: Mapping[str, Reported] = {
    "base": Reported(0.864, f"{PAPER}, section 4.2"),
    "ppo": Reported(0.866, f"{PAPER}, section 4.2"),
    "tgrpo": Reported(0.910, f"{PAPER}, section 4.2"),
    "tgrpo_no_t": Reported(0.736, f"{PAPER}, section 4.3"),
    "tgrpo_no_s": Reported(0.868, f"{PAPER}, section 4.3"),
    "grape": Reported(0.89, f"{POST}, 'about 89%'"),
}

# (a1, a2) of tasks 1 to 10: the weights of S and of T.
TABLE_3: tuple[tuple[float, float], ...] = (
    (10, 1),
    (1, 0.1),
    (10, 5),
    (0.35, 0.65),
    (0.3, 0.7),
    (0.3, 0.7),
    (10, 1),
    (10, 1),
    (0.3, 0.7),
    (0.3, 0.7),
)

# Task 10 by (a1, a2), as section A.2 words it; figures 3 and 7 show it without numbers.
TASK_10: Mapping[tuple[float, float], str] = {
    (0.3, 0.7): "96% (tables 1 and 3)",
    (0.7, 0.3): "about 96%, the peak of the low area",
    (1, 10): "about 96%, the peak of the mixed area",
    (1, 0.1): "88% to 96%, the rim of the low area",
    (0.35, 0.65): "88% to 96%, in the low area",
    (10, 1): "76% to 84%",
    (10, 5): "76% to 84%",
}

# What section A.2 says of table 3's ten pairs.
A2_CLAIMS: Mapping[str, float] = {
    "mean of a1": 4.30,
    "SD of a1": 4.92,
    "mean of a2": 1.16,
    "SD of a2": 1.38,
    "Pearson r": 0.52,
}

SUITES: Mapping[str, str] = {
    "libero_spatial": "Spatial",
    "libero_object": "Object",
    "libero_goal": "Goal",
    "libero_10": "Long",
}

_SUITES = f"{POST}, 'All 4 LIBERO Suites'"

# In the order of SUITES, and the average as the post prints it.
SUITE_RATES: Mapping[str, tuple[Reported, ...]] = {
    "base": _percent(_SUITES, 84.7, 88.4, 79.2, 51.1),
    "grape": _percent(_SUITES, 88.5, 92.1, 83.1, 57.2),
    "tgrpo": _percent(_SUITES, 90.4, 92.2, 81.0, 59.2),
}
SUITE_AVERAGES: Mapping[str, float] = {"base": 0.765, "grape": 0.802, "tgrpo": 0.807}

# Trajectories a group -> success on LIBERO-Goal.
GROUP_SIZES: Mapping[int, Reported] = {
    2: Reported(0.762, f"{POST}, 'Group Size N Ablation'"),
    4: Reported(0.810, f"{POST}, 'Group Size N Ablation'"),
    8: Reported(0.805, f"{POST}, 'Group Size N Ablation'"),
}
