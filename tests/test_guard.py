"""When a run ends and which checkpoint it keeps: decisions on numbers made by hand."""

from math import inf, nan

import pytest

from stages.guard import Ending, Validation, best, due, idle, judge, kept, near_best, trouble
from stages.params import GuardParams


def guard(**changes: float) -> GuardParams:
    fields = {"solved": 0.9, "patience": 2, "idle": 2, "max_kl": 0.5, "min_entropy": 0.1}
    return GuardParams.model_validate(fields | changes)


def row(**changes: float) -> dict[str, float]:
    return {"updates": 3, "kl_end": 0.01, "entropy_end": 1.0, "success": 0.5, "groups_used": 4, **changes}


def validations(*successes: int, of: int = 10, every: int = 5) -> list[Validation]:
    return [Validation(index * every, count, of) for index, count in enumerate(successes)]


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({}, None),
        ({"kl_end": 0.5, "entropy_end": 0.1}, None),  # the limits themselves are allowed
        ({"kl_end": 0.51}, "kl"),
        ({"entropy_end": 0.09}, "entropy"),
        ({"kl_end": nan}, "diverged"),
        ({"entropy_end": inf}, "diverged"),
        ({"updates": 0, "kl_end": nan, "entropy_end": nan}, None),  # nothing was learnt, so nothing can be wrong
    ],
)
def test_trouble_after_an_update(changes: dict[str, float], kind: str | None) -> None:
    found = trouble(row(**changes), guard(), 7)
    assert (found and found.kind) == kind
    if found:
        assert (found.iteration, found.last_good) == (7, 6)


def test_a_run_without_anything_to_learn_from_ends() -> None:
    fails, succeeds = row(groups_used=0, success=0.0), row(groups_used=0, success=1.0)
    assert idle([fails], guard()) is None
    assert idle([fails, row()], guard()) is None
    assert idle([row(), fails, fails], guard()) == Ending(
        "stuck", 3, "no group of the last 2 iterations had anything to learn from"
    )
    # All succeed: solved, also where returns still differed, because some were faster.
    ending = idle([fails, succeeds, row(success=1.0)], guard())
    assert ending and (ending.kind, ending.iteration, ending.last_good) == ("solved", 3, 3)
    assert idle([fails] * 9, guard(idle=0)) is None


def test_solved_by_validation() -> None:
    assert judge(validations(5, 8), guard()) is None
    solved = judge(validations(5, 9), guard())
    assert solved == Ending("solved", 5, "9/10 on the validation states")
    assert judge(validations(9), guard()) == Ending("solved", 0, "9/10 on the validation states")


def test_stuck_after_validations_without_a_new_best() -> None:
    assert judge(validations(5, 7, 6), guard()) is None
    stuck = judge(validations(5, 7, 6, 7), guard())  # equal to the best is not better
    assert stuck == Ending("stuck", 15, "2 validations without more than 7/10 of iteration 5")
    assert judge(validations(5, 7, 6, 8), guard()) is None
    assert judge(validations(5, 4, 3, 2, 1), guard(patience=0)) is None


def test_the_best_checkpoint_is_the_earlier_of_equals() -> None:
    assert best(validations(5, 8, 6, 8)).iteration == 5
    # By rate, not by count: the simulator crashed in two episodes.
    assert best([Validation(0, 8, 10), Validation(5, 7, 8)]).iteration == 5


def test_of_checkpoints_that_a_validation_cannot_tell_apart_the_latest_is_kept() -> None:
    # One standard error of 60/64 is 3.3 points, of 8/10 is 12.
    assert near_best(validations(40, 60, 58, of=64)).iteration == 10
    assert near_best(validations(40, 60, 57, of=64)).iteration == 5
    assert near_best(validations(5, 8, 6, 7)).iteration == 15
    assert (
        near_best(validations(64, 63, 40, of=64)).iteration == 5
    )  # an early success is no reason to keep a late failure
    assert Validation(0, 64, 64).standard_error == pytest.approx(0.0205, abs=1e-4)  # not 0


@pytest.mark.parametrize(
    ("ending", "keep", "expected"),
    [
        (Ending("completed", 15, ""), "best", 5),
        (Ending("completed", 15, ""), "near_best", 15),
        (Ending("completed", 15, ""), "last", 15),
        (Ending("kl", 12, ""), "best", 5),
        (Ending("kl", 12, ""), "near_best", 5),
        (Ending("kl", 12, ""), "last", 11),  # the one that showed the trouble is never kept
        (Ending("diverged", 5, ""), "best", 0),  # what was validated as iteration 5 is out of the question
        (Ending("diverged", 1, ""), "last", 0),
    ],
)
def test_the_checkpoint_that_is_kept(ending: Ending, keep, expected: int) -> None:
    assert kept(validations(5, 8, 6, 7), ending, keep) == expected


def test_without_validations_the_last_good_one_is_kept() -> None:
    assert kept([], Ending("completed", 14, ""), "best") == 14
    assert kept([], Ending("entropy", 14, ""), "best") == 13


def test_validations_are_due_at_the_start_every_few_iterations_and_at_the_end() -> None:
    def when(every: int, last: int = 14) -> list[int]:
        return [k for k in range(last + 1) if due(k, last, every)]

    assert when(5) == [0, 5, 10, 14]
    assert when(7) == [0, 7, 14]
    assert when(0) == []
