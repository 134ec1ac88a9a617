"""How `tgrpo advantage` weighs a stored group (3 trajectories of 40, 17 and 33 decisions; the second ends in success)."""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from stages.advantage import weigh_group
from stages.params import Params
from stages.store.advantages import Advantages, open_advantages
from stages.store.groups import open_group

sys.path.insert(0, str(Path(__file__).parent / "store"))
from group_sample import LENGTHS, write_sample

from tests.conftest import Run


def weigh(tmp_path: Path, params: Params, **changes: object) -> Advantages:
    write_sample(tmp_path / "group.zarr")
    weigh_group(
        open_group(tmp_path / "group.zarr"), params.advantage.model_copy(update=changes), tmp_path / "advantages.zarr"
    )
    return open_advantages(tmp_path / "advantages.zarr")


def test_a_held_success_counts_in_the_return_and_not_in_the_steps(tmp_path: Path, params: Params) -> None:
    found = weigh(tmp_path, params, min_return_std=0.0, hold_success=True)
    # Every reward at t is 1 + t % 2. Sums: 40 + 20 = 60; 17 + 8 = 25, then 23 more steps of the last reward 1; 33 + 16 = 49.
    np.testing.assert_array_equal(found.returns, [60, 48, 49])
    # At each t all that still run have one reward, so no step is better than another, also after the success.
    assert (found.step_advantage == 0).all()
    expected = (np.array([60, 48, 49]) - 157 / 3) / np.std([60, 48, 49], ddof=1)
    np.testing.assert_allclose(found.trajectory_advantage, expected)
    np.testing.assert_array_equal(found.mask.sum(1), LENGTHS)  # the held steps are not trained on
    assert (found.advantage[~found.mask] == 0).all()


def test_without_the_hold_an_early_success_is_worth_less(tmp_path: Path, params: Params) -> None:
    found = weigh(tmp_path, params, min_return_std=0.0, hold_success=False)
    np.testing.assert_array_equal(found.returns, [60, 25, 49])


def test_a_group_whose_returns_hardly_differ_is_left_out_whole(tmp_path: Path, params: Params) -> None:
    found = weigh(tmp_path, params, min_return_std=40.0)
    assert not found.attrs.used and not found.mask.any()


def test_flags_come_before_the_weights_of_a_task(tmp_path: Path, tgrpo: Callable[..., Run]) -> None:
    write_sample(tmp_path / "group.zarr")
    task = open_group(tmp_path / "group.zarr").attrs.task
    own = f"advantage.per_task={{{task}: {{a1: 10, a2: 5}}}}"
    for flags, want in (((), (10, 5)), (("--a1", "2"), (2, 0.7))):
        out = tmp_path / f"{want[0]}.zarr"
        assert tgrpo("advantage", tmp_path / "group.zarr", "--set", own, *flags, "--out", out).code == 0
        attrs = open_advantages(out).attrs
        assert (attrs.a1, attrs.a2) == want
