"""Groups: what goes in comes out, streamed, whole or not at all, and nothing broken is taken for a group."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from group_sample import ATTRS, LENGTHS, SIZE, G, K, S, T, decision, sample_score, scene, write_sample

from stages.errors import ArtifactError, SimulatorError
from stages.store.artifacts import digest_of, find_partials
from stages.store.groups import open_group, write_group
from stages.store.schema import GROUP_ARRAYS


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sample(tmp_path_factory.mktemp("groups") / "one.zarr")


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "copy.zarr"))


def edit_record(path: Path, **changes: Any) -> None:
    """Changes the `tgrpo` attribute in the JSON itself; None removes a key."""
    root = json.loads((path / "zarr.json").read_text())
    record = root["attributes"]["tgrpo"]
    record.update(changes)
    root["attributes"]["tgrpo"] = {key: value for key, value in record.items() if value is not None}
    (path / "zarr.json").write_text(json.dumps(root))


def test_what_was_appended_comes_back(whole: Path) -> None:
    group = open_group(whole)
    assert (group.trajectories, group.decisions) == (G, T)
    assert group.attrs == ATTRS
    steps = [decision(t) for t in range(T)]
    mask = np.arange(T) < LENGTHS[:, None]
    np.testing.assert_array_equal(group["mask"][:], mask)
    for name in steps[0].keys() - {"mask", "scene"}:
        given = np.stack([step[name] for step in steps], axis=1)
        np.testing.assert_array_equal(group[name][:][mask], given[mask], err_msg=name)
        assert not group[name][:][~mask].any(), f"{name} holds something in its padding"
    for t in (0, 16, 39):
        given_scene, stored_scene = steps[t]["scene"], group.scene()[:, t]
        for name in ("ee_pos", "object_quat", "grasped", "success"):
            taken = mask[:, t]
            np.testing.assert_array_equal(getattr(stored_scene, name)[taken], getattr(given_scene, name)[taken])


def test_the_start_comes_back(whole: Path) -> None:
    rng = np.random.default_rng(99)
    state, start = rng.normal(size=S), scene(rng=rng)
    group = open_group(whole)
    np.testing.assert_array_equal(group["initial_state"][:], state)
    np.testing.assert_array_equal(group.initial_scene().object_pos, start.object_pos)
    assert not group.initial_scene().success


def test_summary_by_hand(whole: Path) -> None:
    group = open_group(whole)
    # Rewards 1, 2, 1, 2, ...: 40 decisions give 60, 17 give 8 * 3 + 1 = 25, 33 give 16 * 3 + 1 = 49.
    np.testing.assert_array_equal(group.returns(), [60, 25, 49])
    np.testing.assert_array_equal(group.successes(), [False, True, False])
    np.testing.assert_array_equal(group["length"][:], LENGTHS)
    assert group.summary.successes == 1
    assert group.summary.mean_return == pytest.approx((60 + 25 + 49) / 3)
    assert group.summary.mean_length == pytest.approx(30)
    assert group.summary.env_steps == 2 * (40 + 17 + 33)


def test_a_slice_is_numpy_and_chunks_hold_16_frames_of_one_trajectory(whole: Path) -> None:
    image = open_group(whole)["image"]
    assert isinstance(image[0, :5], np.ndarray)
    assert image.chunks == (1, 16, SIZE, SIZE, 3)
    assert [type(codec).__name__ for codec in image.compressors] == ["ZstdCodec"]


def test_any_zarr_reader_opens_it(whole: Path) -> None:
    group = zarr.open(whole, mode="r")
    assert group.metadata.zarr_format == 3
    assert set(group.array_keys()) == {spec.name for spec in GROUP_ARRAYS}
    assert group["object_pos"].metadata.dimension_names == ("G", "T", "O", "xyz")
    assert group["object_pos"].attrs["unit"] == "m"
    assert group.attrs["tgrpo"]["task"] == "libero_object/6"


def test_frames_reach_the_disk_while_the_rollout_runs(tmp_path: Path) -> None:
    with write_group(
        tmp_path / "g.zarr",
        ATTRS,
        trajectories=G,
        initial_state=np.zeros(S),
        initial_scene=scene(rng=np.random.default_rng(0)),
        score=sample_score,
    ) as writer:
        for t in range(33):
            writer.append(**decision(t))
        (partial,) = find_partials(tmp_path)
        # 33 decisions: two full chunks of 16 for each of the 3 trajectories; the 33rd waits for its chunk to fill.
        written = list((partial / "image").glob("c.*"))
        assert len(written) == 2 * 3
        assert zarr.open(partial, mode="r")["image"].shape[1] == 32
        assert not (tmp_path / "g.zarr").exists()
    assert open_group(tmp_path / "g.zarr").decisions == 33
    assert find_partials(tmp_path) == []


def test_same_content_same_bytes(whole: Path, tmp_path: Path) -> None:
    assert digest_of(write_sample(tmp_path / "again.zarr")) == digest_of(whole)
    assert digest_of(write_sample(tmp_path / "shorter.zarr", decisions=39)) != digest_of(whole)


def test_no_machine_paths_or_times_inside(whole: Path) -> None:
    text = "".join(path.read_text() for path in whole.rglob("zarr.json"))
    assert str(whole.parent) not in text and "/home" not in text and "2026" not in text


def test_an_exception_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "g.zarr"
    with (
        pytest.raises(RuntimeError, match="the simulator died"),
        write_group(
            path,
            ATTRS,
            trajectories=G,
            initial_state=np.zeros(S),
            initial_scene=scene(rng=np.random.default_rng(0)),
            score=sample_score,
        ) as writer,
    ):
        for t in range(20):
            writer.append(**decision(t))
        raise RuntimeError("the simulator died")
    assert list(tmp_path.iterdir()) == []


def test_an_existing_group_is_kept_unless_overwritten(copy: Path) -> None:
    before = digest_of(copy)
    with pytest.raises(ArtifactError, match="exists already"):
        write_sample(copy, decisions=20)
    assert digest_of(copy) == before
    write_sample(copy, decisions=20, overwrite=True)
    assert open_group(copy).decisions == 20
    assert find_partials(copy.parent) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": np.zeros((G, SIZE, SIZE), np.uint8)}, "image: got uint8"),
        ({"action_token": np.zeros((G, 7))}, "action_token: got float64"),
        ({"mask": np.ones(G - 1, bool)}, "mask"),
        ({"rubbish": np.zeros(G)}, "rubbish"),
    ],
)
def test_arrays_of_another_shape_are_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with (
        pytest.raises(ValueError, match=message),
        write_group(
            tmp_path / "g.zarr",
            ATTRS,
            trajectories=G,
            initial_state=np.zeros(S),
            initial_scene=scene(rng=np.random.default_rng(0)),
            score=sample_score,
        ) as writer,
    ):
        writer.append(**{**decision(0), **change})


def test_an_ended_trajectory_stays_ended(tmp_path: Path) -> None:
    with (
        pytest.raises(ValueError, match="stay ended"),
        write_group(
            tmp_path / "g.zarr",
            ATTRS,
            trajectories=G,
            initial_state=np.zeros(S),
            initial_scene=scene(rng=np.random.default_rng(0)),
            score=sample_score,
        ) as writer,
    ):
        writer.append(**{**decision(0), "mask": np.array([True, False, True])})
        writer.append(**{**decision(1), "mask": np.array([True, True, True])})


def test_missing_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"none\.zarr does not exist: expected a group; .*`tgrpo rollout`"):
        open_group(tmp_path / "none.zarr")


def test_half_written_is_refused(copy: Path) -> None:
    edit_record(copy, complete=None)
    with pytest.raises(ArtifactError, match="half-written"):
        open_group(copy)


def test_no_record_is_refused(copy: Path, tmp_path: Path) -> None:
    (copy / "zarr.json").write_text('{"attributes": ')
    with pytest.raises(ArtifactError, match="no whole artifact"):
        open_group(copy)
    zarr.create_group(tmp_path / "alien.zarr", zarr_format=3)
    with pytest.raises(ArtifactError, match="no whole artifact"):
        open_group(tmp_path / "alien.zarr")
    with pytest.raises(ArtifactError, match="no whole artifact"):
        open_group(Path(__file__))


def test_another_schema_version_is_refused(copy: Path) -> None:
    edit_record(copy, schema_version=1)
    with pytest.raises(ArtifactError, match="schema version 1, this tgrpo reads version 2"):
        open_group(copy)


def test_another_kind_is_refused(copy: Path) -> None:
    edit_record(copy, kind="advantages")
    with pytest.raises(ArtifactError, match="is advantages, expected a group"):
        open_group(copy)


def test_a_missing_attribute_is_named(copy: Path) -> None:
    edit_record(copy, instruction=None)
    with pytest.raises(ArtifactError, match="'instruction'"):
        open_group(copy)


def test_a_cut_off_copy_is_refused(copy: Path) -> None:
    (copy / "image" / "c.0.1.0.0.0").unlink()
    with pytest.raises(ArtifactError, match="not whole"):
        open_group(copy)


def test_a_truncated_file_is_refused(copy: Path) -> None:
    chunk = copy / "image" / "c.0.1.0.0.0"
    chunk.write_bytes(chunk.read_bytes()[:-1])
    with pytest.raises(ArtifactError, match="not whole"):
        open_group(copy)


@pytest.mark.parametrize(
    ("name", "replacement", "message"),
    [
        ("reward", None, r"lacks the array 'reward', expected float32 \(3, 40\)"),
        ("reward", np.zeros((G, T)), r"'reward' is float64 \(3, 40\), expected float32 \(3, 40\)"),
        ("reward", np.zeros((G, T - 1), np.float32), r"'reward' is float32 \(3, 39\), expected float32 \(3, 40\)"),
    ],
)
def test_a_wrong_array_is_named(copy: Path, name: str, replacement: Any, message: str) -> None:
    group = zarr.open_group(copy, mode="r+")
    del group[name]
    if replacement is not None:
        group.create_array(name, data=replacement)
    files = [path for path in copy.rglob("*") if path.is_file() and path != copy / "zarr.json"]
    edit_record(copy, files=len(files), bytes=sum(path.stat().st_size for path in files))
    with pytest.raises(ArtifactError, match=message):
        open_group(copy)


def fail_after(decisions: int, path: Path, overwrite: bool = False) -> str:
    """Writes some decisions of the sample, then fails as the simulator does; returns what the error says."""
    with (
        pytest.raises(SimulatorError) as caught,
        write_group(
            path,
            ATTRS,
            trajectories=G,
            initial_state=np.zeros(S),
            initial_scene=scene(rng=np.random.default_rng(0)),
            score=sample_score,
            overwrite=overwrite,
        ) as writer,
    ):
        for t in range(decisions):
            writer.append(**decision(t))
        raise SimulatorError("environment 1 died 4 times; try fewer envs")
    return str(caught.value)


def test_what_the_simulator_cut_short_is_kept_apart(tmp_path: Path) -> None:
    message = fail_after(20, tmp_path / "g.zarr")
    kept = tmp_path / "g.incomplete.zarr"
    assert message.startswith("environment 1 died 4 times; try fewer envs; ")
    assert message.endswith(f"the decisions so far (20) are kept in {kept}, marked incomplete")
    assert list(tmp_path.iterdir()) == [kept]
    with pytest.raises(ArtifactError, match=r"g\.incomplete\.zarr is incomplete: .* `tgrpo rollout`"):
        open_group(kept)
    group = open_group(kept, incomplete=True)
    assert (group.complete, group.decisions, group.summary.env_steps) == (False, 20, 2 * (20 + 17 + 20))
    np.testing.assert_array_equal(group["reward"][0], [1, 2] * 10)
    np.testing.assert_array_equal(group["image"][2, 19], decision(19)["image"][2])
    # A later failure at the same place takes it over, and a group that gets whole does not touch it.
    fail_after(3, tmp_path / "g.zarr")
    assert open_group(kept, incomplete=True).decisions == 3
    assert open_group(write_sample(tmp_path / "g.zarr")).complete
    assert open_group(kept, incomplete=True).decisions == 3


def test_a_failure_before_the_first_decision_keeps_nothing(tmp_path: Path) -> None:
    assert fail_after(0, tmp_path / "g.zarr") == "environment 1 died 4 times; try fewer envs"
    assert list(tmp_path.iterdir()) == []


def test_a_failure_leaves_the_group_that_was_to_be_replaced(copy: Path) -> None:
    before = digest_of(copy)
    fail_after(5, copy, overwrite=True)
    assert digest_of(copy) == before
    assert open_group(copy.parent / "copy.incomplete.zarr", incomplete=True).decisions == 5


def test_the_states_of_a_trajectory_are_those_that_were_run(whole: Path) -> None:
    group = open_group(whole)
    states = group.states(1)
    assert states.shape == (1 + K * LENGTHS[1], S)
    np.testing.assert_array_equal(states[0], group["initial_state"][:])
    np.testing.assert_array_equal(states[1 + 2 * 4 : 1 + 2 * 5], group["sim_state"][1, 4])
