"""The documents' own numbers: what they print as means follows from what they print, or is known not to."""

from statistics import fmean

import pytest

from stages.paper.numbers import OBJECT_MEANS, OBJECT_TASKS, SUITE_AVERAGES, SUITE_RATES, TABLE_1, TABLE_3, task_number
from stages.params import load_params
from tests.conftest import ROOT


@pytest.mark.parametrize("method", TABLE_1)
def test_table_1_gives_the_means_of_the_text(method: str) -> None:
    assert len(TABLE_1[method]) == 10
    assert fmean(one.rate for one in TABLE_1[method]) == pytest.approx(OBJECT_MEANS[method].rate)


def test_the_posts_average_of_sft_does_not_follow_from_its_suites() -> None:
    means = {method: fmean(one.rate for one in rates) for method, rates in SUITE_RATES.items()}
    assert means["tgrpo"] == pytest.approx(SUITE_AVERAGES["tgrpo"])
    assert means["grape"] == pytest.approx(SUITE_AVERAGES["grape"], abs=5e-4)
    assert means["base"] == pytest.approx(0.7585)  # printed as 76.5%
    assert means["base"] + (0.537 - 0.511) / 4 == pytest.approx(SUITE_AVERAGES["base"])


def test_the_paper_profile_ships_table_3() -> None:
    shipped = load_params(ROOT / "params" / "openvla-7b.yaml").advantage
    assert [shipped.weights_of(task) for task in OBJECT_TASKS] == [(a1, a2) for a1, a2 in TABLE_3]
    assert task_number("libero_object/6") == 7
    assert task_number("libero_goal/6") is None
