"""The checks of verification, each on hand-made trajectories that pass it and that fail it."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from stages.rewards.verification.checks import CHECKS, examine
from stages.rewards.verification.trajectories import Role, Trajectories

NAMES = ("far", "ready", "lifted", "placed", "dropped")
LEVELS = {-2.0: 0, 4.0: 1, 8.0: 2, 16.0: 3, -4.0: 4}
HORIZON = 8
EXPERT: list[float] = [-2, 4, 8, 8, 16]
DROP: list[float] = [-2, 4, 8, -4, -4, -4, -4, -4]
HOLD: list[float] = [-2, 4, 8, 8, 8, 8, 8, 8]
ONE: list[float] = [1] * 8
OTHER: list[float] = [-2, -2, 4, -2, -2, -2, -2, -2]
CUTS: dict[float, list[float]] = {0.25: [-2] * 8, 0.5: [-2, *[4] * 7], 0.75: HOLD}


def trajectories(
    expert: Sequence[float] = EXPERT,
    drop: Sequence[float] = DROP,
    hold: Sequence[float] = HOLD,
    other: Sequence[float] = OTHER,
    cuts: dict[float, list[float]] | None = None,
    levels: dict[float, int] | None = None,
    start: str = "sampled/1",
    **changes: Any,
) -> Trajectories:
    """An expert that holds the object in decisions 2 and 3, a drop after decision 2, one that holds for ever, one that carries
    another object, cut-offs."""
    cut: dict[float, list[float]] = {**CUTS, **(cuts or {})}
    rewards: list[Sequence[float]] = [expert, drop, hold, other, *cut.values()]
    cut_off: Role = "cut off"
    roles: tuple[Role, ...] = ("expert", "drop", "", "other object", *[cut_off] * len(cut))
    n, longest = len(rewards), max(map(len, rewards))
    reward = np.array([[*r, *[0.0] * (longest - len(r))] for r in rewards], np.float64)
    taken = np.arange(longest) < np.array([[len(r)] for r in rewards])
    milestone = np.vectorize(lambda r: (levels or LEVELS).get(r, 0))(reward) * taken
    solved, held = np.zeros((2, n, longest), np.bool_)
    solved[0, len(expert) - 1] = True
    held[0, 2:4] = held[1, 2] = held[2, 2:] = True
    reach = np.where(held, 0.02, 0.2)
    given: dict[str, Any] = {
        "labels": ("expert", "drop", "hold", "other", *(f"cut {part}" for part in cut)),
        "kinds": ("either",) * n,
        "roles": roles,
        "parts": np.array([1.0, 1.0, 1.0, 1.0, *cut]),
        "starts": (start,) * n,
        "taken": taken,
        "reward": reward,
        "milestone": milestone,
        "solved": solved,
        "prepared": taken,
        "held": held,
        "lift": np.where(held, 0.1, 0.0),
        "other_lift": np.array([0.1 if role == "other object" else 0.0 for role in roles])[:, None] * taken,
        "reach": reach,
        "horizon": HORIZON,
        "milestone_names": NAMES,
    }
    return Trajectories(**{**given, **changes})


def failed(t: Trajectories) -> dict[str, str]:
    return {check.name: f"{check.found} | {check.where}" for check in examine(t) if check.passed is False}


def test_a_staircase_passes_every_check() -> None:
    found = examine(trajectories())
    assert [(check.name, check.passed) for check in found] == [(check.name, True) for check in found]
    assert len(found) == len(CHECKS) == 10


def test_returns_hold_a_success_until_the_horizon() -> None:
    t = trajectories()
    assert t.returns[0] == sum(EXPERT) + 3 * 16
    assert t.returns[2] == sum(HOLD)
    early = trajectories(hold=[-2, 4])  # ended early without success, and keeps nothing
    assert early.returns[2] == 2


@pytest.mark.parametrize(
    ("changes", "name", "said"),
    [
        ({"expert": [-2, 4, 8, 8, 5000]}, "bounded", "from -4 to 5000 | 'expert' from sampled/1, decision 4"),
        ({"expert": ONE[:5], "drop": ONE, "hold": ONE, "other": ONE, "cuts": dict.fromkeys(CUTS, ONE)}, "varies", "is 1 at"),
        ({"expert": [-2, -2, -2, -2, 4]}, "ranking", "an AUC of 0.500 on 6 pairs | 'expert' from sampled/1 returns 8"),
        ({"expert": [-2, 8, 4, 8, 16]}, "order", "far (-2), lifted (8), ready (4), placed (16) | 'expert'"),
        ({"levels": {**LEVELS, 8.0: 1, 4.0: 2}}, "order", "far (-2), lifted (4), ready (8), placed (16)"),
        ({"expert": [16] * 5}, "order", "one milestone alone: placed (16)"),
        ({"expert": [-2, 4, 8, 8, 9.9]}, "completion", "worth 9.9, and the highest reward without it is 8 | 'expert'"),
        ({"expert": [-2, -4, -4, -4, -1], "hold": [-4] * 8}, "completion", "success is worth -1"),
        ({"drop": [-2, 4, 8, 8, 8, 8, 8, 8]}, "drop punished", "8 while the object is held, 8 when it has fallen | 'drop'"),
        ({"drop": [-2, 4, 8, -4, 4, 4, 4, 4]}, "drop punished", "where it fell, -2 at the start and 4 when"),
        ({"other": [-2, 4, 8, *[-2] * 5]}, "right object", "at most 8 with another object in the air, 8 when"),
        ({"cuts": {0.5: [-2] * 8, 0.25: [4] * 8}}, "progress", "32 after 25%, -16 after 50%"),
        ({"hold": [-2, 4, *[12] * 6], "expert": [-2, 4, -2, -2, 16]}, "honest", "or more | 'hold' from sampled/1 returns 74"),
    ],
)  # fmt: skip
def test_each_check_fails_where_it_should(changes: dict[str, Any], name: str, said: str) -> None:
    assert said in failed(trajectories(**changes))[name]


def test_one_step_back_among_many_milestones_is_in_order() -> None:
    many = [-2, 1, 2, 3, 4, 6, 5, 7, 16]
    levels = {float(level): m for m, level in enumerate(sorted(many))}
    assert "order" not in failed(trajectories(expert=many, levels=levels))
    worse = [-2, 3, 2, 1, 4, 6, 5, 7, 16]
    assert "order" in failed(trajectories(expert=worse, levels=levels))


def test_a_level_belongs_to_one_milestone() -> None:
    t = trajectories(milestone_names=(*NAMES, "carried"))
    t.milestone[0, 3] = 5
    assert (
        failed(t)["staircase"] == "the reward 8 is given for lifted and carried | 'expert' from sampled/1, decision 3"
    )


def test_a_milestone_has_one_reward() -> None:
    t = trajectories(hold=[-2, 4, 8, 8, 8.5, 8, 8, 8], levels={**LEVELS, 8.5: 2})
    assert failed(t)["staircase"] == "within lifted the reward is 8, 8.5 | 'hold' from sampled/1, decision 4"


def test_a_drop_keeps_what_was_reached_before() -> None:
    """A drawer is open, and then the object falls: less than with the drawer open, but more than at the very start."""
    changes: dict[str, Any] = {
        "expert": [-20, 4, 8, 8, 16],
        "drop": [-20, 4, 8, -4, -4, -4, -4, -4],
        "cuts": dict.fromkeys(CUTS, [-20] * 8),
    }
    levels = {**LEVELS, -20.0: 0, -4.0: 4}
    assert "-20 at the start" in failed(trajectories(**changes, levels=levels))["drop punished"]
    t = trajectories(**changes, levels=levels)
    t = replace(t, prepared=t.taken & (np.arange(t.taken.shape[1]) > 0))
    assert "drop punished" not in failed(t)


def test_a_milestone_off_the_experts_way_may_share_a_level() -> None:
    t = trajectories(drop=[-2, 4, 8, -2, -2, -2, -2, -2])
    t.milestone[1, 3:] = NAMES.index("dropped")
    assert "staircase" not in failed(t)
    assert "-2 while the object lies where it fell, -2 at the start" in failed(t)["drop punished"]  # no penalty


def test_too_many_levels_are_no_staircase() -> None:
    dense = np.linspace(0, 1, 30)
    levels = LEVELS | {level: 5 + m for m, level in enumerate(dense.tolist())}
    named = {"hold": list(dense), "levels": levels, "milestone_names": (*NAMES, *map(str, range(30)))}
    t = trajectories(**named)
    assert "different rewards | 'hold' from sampled/1 has 30: 0, 0.0344" in failed(t)["staircase"]
    assert "staircase" not in failed(trajectories(**named, goals=2))
    few = trajectories(hold=list(dense[:9]), levels=dict.fromkeys(LEVELS, 0))
    assert "14 different rewards" in failed(few)["staircase"]  # more than a program without milestones may have


def test_checks_without_what_they_need_do_not_apply() -> None:
    t = trajectories()
    lonely = trajectories(solved=np.zeros_like(t.solved), has_target=False)
    unclear = {check.name for check in examine(lonely) if check.passed is None}
    assert unclear == {"ranking", "order", "completion", "drop punished", "right object", "progress", "honest"}


def test_starts_are_not_compared_with_each_other() -> None:
    """A start on which all is worth less makes no failure of the other."""
    poor = trajectories(
        expert=[-2, -2, -2, 4, 8],
        drop=[-2, 4, 8, -4, -4, -4, -4, -4],
        hold=[-4] * 8,
        other=[-4] * 8,
        cuts=dict.fromkeys(CUTS, [-4.0] * 8),
        start="sampled/2",
    )
    both = Trajectories.join([trajectories(), poor])
    assert both.starts == ("sampled/1",) * 7 + ("sampled/2",) * 7
    assert both.returns[7] < both.returns[2]  # the poor success beside the rich failure
    assert not {"ranking", "honest"} & failed(both).keys()
