"""Probe trajectories: what is recorded is what its label says, as an ordinary group."""

from pathlib import Path

import numpy as np
import pytest

from stages.describe import describe
from stages.errors import ArtifactError, MismatchError, UsageError
from stages.inspect import inspect
from stages.probes import probe_groups
from stages.replay import film, replay
from stages.sft import sft
from stages.store.artifacts import digest_of
from stages.store.groups import Group, open_group
from stages.store.provenance import read_manifest
from tests.probe_sample import STEPS, record, recorded, sample_params

TARGET = "butter_1"


@pytest.fixture(scope="module")
def group() -> Group:
    (path,) = probe_groups(recorded())
    return open_group(path)


def of(group: Group, name: str, label: str) -> np.ndarray:
    """An array of the decisions that a trajectory took."""
    g = group.attrs.labels.index(label)
    return group[name][g, : int(group["length"][g])]


def lift(group: Group, label: str) -> np.ndarray:
    o = group.names.object_names.index(TARGET)
    return of(group, "object_pos", label)[:, o, 2] - group["initial_object_pos"][:][o, 2]


def held(group: Group, label: str) -> np.ndarray:
    return of(group, "grasped", label)[:, group.names.object_names.index(TARGET)]


def test_a_recording_is_an_artifact_of_ordinary_groups(group: Group) -> None:
    manifest = read_manifest(recorded(), "probes")
    assert manifest.details["task"] == "libero_object/6"
    assert manifest.details["starts"] == [group.attrs.initial_state]
    assert manifest.details["kinds"].keys() == set(group.attrs.labels)
    assert group.trajectories == len(group.attrs.labels) == 21
    assert (group.attrs.action_repeat, group.attrs.max_env_steps) == (sample_params().sim.action_repeat, STEPS)
    assert not group["reward"][:].any()
    assert group.attrs.image_size == group["image"].size == 0  # rewards do not look


def test_what_is_expected_to_succeed_or_fail_does(group: Group) -> None:
    kinds = read_manifest(recorded(), "probes").details["kinds"]
    for label, success in zip(group.attrs.labels, group.successes(), strict=True):
        assert kinds[label] == "either" or success == (kinds[label] == "success_expected"), label
    assert kinds["expert"] == "success_expected"
    assert (of(group, "env_steps", "drop").sum() == STEPS) and of(group, "env_steps", "expert").sum() < STEPS


def test_a_cut_off_follows_the_expert_and_then_stands_still(group: Group) -> None:
    expert, cut = of(group, "sim_state", "expert"), of(group, "sim_state", "cut off at 50%")
    half = len(expert) // 2 - 1
    np.testing.assert_array_equal(cut[:half], expert[:half])
    still = of(group, "ee_pos", "cut off at 50%")[half + 3 :]
    assert np.ptp(still, axis=0).max() < 0.01
    gripper = of(group, "action", "cut off at 50%")[:, 6]
    assert set(gripper[half + 2 :]) == {gripper[half + 2]}


def test_probes_do_what_their_labels_say(group: Group) -> None:
    assert lift(group, "drop").max() > 0.1 and lift(group, "drop")[-1] < 0.02 and not held(group, "drop")[-1]
    assert (lift(group, "hold for ever")[-10:] > 0.05).all() and held(group, "hold for ever")[-10:].all()
    above = np.diff((lift(group, "lift and lower") > 0.05).astype(int))
    assert (above > 0).sum() >= 2 and (above < 0).sum() >= 2
    beside = lift(group, "put down beside the goal")
    assert beside.max() > 0.1 and abs(beside[-1]) < 0.02
    assert not held(group, "put down beside the goal")[-1]

    basket = group["initial_object_pos"][:][group.names.object_names.index("basket_1")]
    for label in ("hover over the goal, open", "hover over the goal, closed fist"):
        assert np.linalg.norm((of(group, "ee_pos", label)[-1] - basket)[:2]) < 0.03
        assert not of(group, "grasped", label).any()
    o = group.names.object_names.index("tomato_sauce_1")
    other = of(group, "object_pos", "carry another object to the goal")[:, o]
    assert of(group, "grasped", "carry another object to the goal")[:, o].any() and np.ptp(other[:, 2]) > 0.1
    assert (
        np.linalg.norm((other[-1] - basket)[:2]) < 0.06
        and abs(lift(group, "carry another object to the goal")[-1]) < 0.01
    )

    opening = {
        label: np.ptp(of(group, "gripper_qpos", f"hover over the goal, {label}")[-1])
        for label in ("open", "closed fist")
    }
    assert opening["open"] > 0.07 > 0.02 > opening["closed fist"]

    o = group.names.object_names.index(TARGET)
    over = of(group, "object_pos", "hold over the goal")[-1, o]
    assert held(group, "hold over the goal")[-1] and np.linalg.norm((over - basket)[:2]) < 0.07
    pushed = of(group, "object_pos", "push with a closed hand")[:, o]
    assert np.linalg.norm((pushed[-1] - pushed[0])[:2]) > 0.02

    distance = np.linalg.norm(of(group, "ee_pos", "jitter at the grasp distance") - pushed[0], axis=1)[10:]
    assert (np.diff((distance < 0.05).astype(int)) != 0).sum() >= 2


def test_disturbed_experts_differ_from_the_moment_on(group: Group) -> None:
    expert, late = of(group, "sim_state", "expert"), of(group, "sim_state", "disturbed in the last third")
    third = 2 * len(expert) // 3 - 1
    np.testing.assert_array_equal(late[:third], expert[:third])
    assert not np.array_equal(late[third + 1], expert[third + 1])


def test_probes_are_shown_from_their_states_alone(group: Group, tmp_path: Path) -> None:
    handle, params = describe(group.path), sample_params()
    film(params, handle, tmp_path / "film.mp4", trajectory=0, size=16, camera=None)
    assert (tmp_path / "film.mp4").stat().st_size > 1000
    with pytest.raises(UsageError, match="cannot be run again"):
        list(replay(params, [handle]))
    assert any("no images" in line for line in inspect(group.path, tmp_path / "picture.png", None, sample_params))


def test_cloning_probes_is_refused(group: Group, tmp_path: Path) -> None:
    with pytest.raises(MismatchError, match="holds no images"):
        sft(sample_params(), [group.path], tmp_path / "clone")
    assert not (tmp_path / "clone").exists()


def test_recording_over_something_is_refused(tmp_path: Path) -> None:
    (tmp_path / "probes").mkdir()
    with pytest.raises(ArtifactError, match="exists already"):
        record(tmp_path / "probes")


def test_groups_of_something_else_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="does not exist"):
        probe_groups(tmp_path / "none")


@pytest.mark.slow
def test_recording_again_gives_the_same_bytes_and_a_policy_adds_its_episodes(
    tmp_path: Path, embedded: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert digest_of(record(tmp_path / "again")) == digest_of(recorded())

    monkeypatch.setattr("tests.probe_sample.SIZE", 96)  # that of the checkpoint
    (path,) = probe_groups(record(tmp_path / "with", embedded))
    with_policy = open_group(path)
    assert with_policy.attrs.labels[-1] == "policy 1" and with_policy.trajectories == 22
    assert of(with_policy, "action_token", "policy 1").any() and not of(with_policy, "action_token", "expert").any()
    assert with_policy.attrs.inputs["checkpoint"]["digest"] == digest_of(embedded)
