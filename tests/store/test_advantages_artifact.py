"""The advantages artifact: round trip and refusals."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import zarr
from group_sample import write_sample

from stages.errors import ArtifactError
from stages.store.advantages import open_advantages, write_advantages
from stages.store.artifacts import digest_of
from stages.store.schema import AdvantagesAttrs

ATTRS = AdvantagesAttrs(
    task="libero_object/6",
    algo="tgrpo",
    a1=0.3,
    a2=0.7,
    used=True,
    left_out="",
    return_std=1.5,
    iteration=None,
    inputs={"group": {"path": "../groups/0001.zarr", "digest": "cd" * 32}},
    params={"advantage": {"a1": 0.3, "a2": 0.7}},
)
S = np.array([[1.0, 0.0, -1.0], [-1.0, 0.0, 1.0]])
T = np.array([0.5, -0.5])


def write(path: Path, attrs: AdvantagesAttrs = ATTRS, **changes: np.ndarray) -> Path:
    arrays = {
        "step_advantage": S,
        "trajectory_advantage": T,
        "advantage": 0.3 * S + 0.7 * T[:, None],
        "returns": np.array([3.0, 1.0]),
        "success": np.array([True, False]),
        "mask": np.ones((2, 3), bool),
    }
    write_advantages(path, attrs, **{**arrays, **changes})
    return path


def test_round_trip(tmp_path: Path) -> None:
    read = open_advantages(write(tmp_path / "a.zarr"))
    assert read.attrs == ATTRS
    np.testing.assert_array_equal(read.step_advantage, S)
    np.testing.assert_array_equal(read.trajectory_advantage, T)
    np.testing.assert_array_equal(read.advantage, 0.3 * S + 0.7 * T[:, None])
    np.testing.assert_array_equal(read.returns, [3, 1])
    np.testing.assert_array_equal(read.success, [True, False])
    assert read.mask.dtype == bool and read.mask.all()


def test_any_zarr_reader_opens_it(tmp_path: Path) -> None:
    group = zarr.open(write(tmp_path / "a.zarr"), mode="r")
    np.testing.assert_array_equal(group["return"][:], [3, 1])
    assert group.attrs["tgrpo"]["a1"] == 0.3


def test_same_content_same_bytes(tmp_path: Path) -> None:
    first = digest_of(write(tmp_path / "a.zarr"))
    assert digest_of(write(tmp_path / "b.zarr")) == first
    assert digest_of(write(tmp_path / "c.zarr", replace(ATTRS, a1=0.4))) != first


@pytest.mark.parametrize("change", [{"advantage": np.full((2, 3), np.nan)}, {"returns": np.zeros(3)}])
def test_nonsense_is_refused_and_leaves_nothing(tmp_path: Path, change: dict[str, np.ndarray]) -> None:
    with pytest.raises(ValueError, match="expected"):
        write(tmp_path / "a.zarr", **change)
    assert list(tmp_path.iterdir()) == []


def test_a_group_is_no_advantages(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="is a group, expected advantages; make one with `tgrpo advantage`"):
        open_advantages(write_sample(tmp_path / "g.zarr", decisions=2))


def test_an_older_artifact_is_refused_in_one_line(tmp_path: Path) -> None:
    path = write(tmp_path / "a.zarr")
    record = json.loads((path / "zarr.json").read_text())
    record["attributes"]["tgrpo"]["schema_version"] = 1
    (path / "zarr.json").write_text(json.dumps(record))
    with pytest.raises(ArtifactError, match=r"version 1.*`tgrpo advantage`"):
        open_advantages(path)


def test_its_formula_says_what_the_advantage_is() -> None:
    assert ATTRS.formula == "0.3 S + 0.7 T"
    assert replace(ATTRS, algo="grpo", a1=0.0, a2=1.0).formula == "grpo"
