"""A run's history: what its columns say about groups, and that the file gives back what was written."""

import math
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from stages.history import COLUMNS, HISTORY, WHOLE, furthest_milestone, history_row, read_history, write_history
from stages.store.groups import Group, open_group

sys.path.insert(0, str(Path(__file__).parent / "store"))
from group_sample import LENGTHS, write_sample


@pytest.fixture(scope="module")
def group(tmp_path_factory: pytest.TempPathFactory) -> Group:
    return open_group(write_sample(tmp_path_factory.mktemp("history") / "group.zarr"))


def advantages(used: bool, returns: list[float]) -> Any:
    return SimpleNamespace(attrs=SimpleNamespace(used=used), returns=np.array(returns))


def test_a_row_by_hand(group: Group) -> None:
    pairs = [(group, advantages(True, [1.0, 2.0, 3.0])), (group, advantages(False, [0.3, 0.1 + 0.2, 0.3]))]
    row = history_row(4, pairs, {"loss": 0.5, "updates": 7})
    assert list(row) == list(COLUMNS)
    assert row["iteration"] == 4 and row["groups"] == 2 and row["groups_used"] == 1 and row["updates"] == 7
    assert row["success"] == pytest.approx(1 / 3) and row["decisions"] == pytest.approx(LENGTHS.mean())
    assert row["zero_variance"] == 0.5  # the second group's returns differ by rounding alone
    mask = group["mask"][:]
    assert row["log_prob"] == pytest.approx(group["log_prob"][:][mask].mean())
    assert row["entropy"] == pytest.approx(group["entropy"][:][mask].mean())
    # The sample's rewards are 1, 2, 1, 2, ..: the highest comes first at t = 1, where its milestone is 1.
    assert row["milestone"] == 1
    assert row["loss"] == 0.5 and math.isnan(row["value_loss"]) and math.isnan(row["kl_end"])


def test_nothing_learnt_leaves_cells_empty_but_counts_zero_updates(group: Group) -> None:
    row = history_row(1, [(group, advantages(False, [1.0, 1.0, 1.0]))], {})
    assert row["updates"] == 0 and row["zero_variance"] == 1
    assert not (row["kl_end"] > 0) and not (row["entropy_end"] < 1)  # what a guard asks


def test_the_furthest_milestone_is_that_of_the_highest_reward() -> None:
    # Far, approaching, lifted, dropped | far, placed | dropped from padding on does not count.
    reward = np.array([[-2.0, 2.0, 8.0, -4.0], [-2.0, 16.0, 0.0, 0.0], [-4.0, 2.0, 99.0, 99.0]])
    milestone = np.array([[0, 1, 3, 5], [0, 4, 5, 5], [5, 1, 5, 5]], np.int8)
    mask = np.array([[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 0, 0]], bool)
    group: Any = type("G", (dict,), {"trajectories": 3})(reward=reward, milestone=milestone, mask=mask)
    assert furthest_milestone(group).tolist() == [3, 4, 1]


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    rows = [
        {"iteration": 1, "success": 0.1 + 0.2, "loss": math.nan, "updates": 0},
        {"iteration": 2, "success": 1 / 3, "loss": -1e-17, "updates": 21},
    ]
    write_history(tmp_path / HISTORY, rows)
    first, second = read_history(tmp_path)
    assert math.isnan(first.pop("loss")) and first == {"iteration": 1, "success": 0.1 + 0.2, "updates": 0}
    assert second == rows[1]
    assert all(isinstance(second[name], int) for name in WHOLE if name in second)
    assert (tmp_path / HISTORY).read_text().splitlines()[1] == "1,0.30000000000000004,,0"
    assert read_history(tmp_path / "nowhere") == []


def test_a_history_of_an_older_version_goes_on_with_more_columns(tmp_path: Path) -> None:
    write_history(
        tmp_path / HISTORY, [{"iteration": 1, "updates": 21.0}, {"iteration": 2, "updates": 3, "kl_end": 0.5}]
    )
    first, second = read_history(tmp_path)
    assert math.isnan(first["kl_end"]) and second["kl_end"] == 0.5 and first["updates"] == 21
