"""Groups with another reward: what changes and what does not, and what is refused."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from stages.describe import describe
from stages.errors import ArtifactError, MismatchError, UsageError
from stages.rescore import rescore
from stages.reward_files import write_reward
from stages.rewards.errors import RewardError
from stages.rewards.program import Reward
from stages.store.artifacts import digest_of
from stages.store.groups import open_group
from stages.store.provenance import Manifest, resolve_reference, write_manifest
from stages.store.schema import GROUP_ARRAYS

sys.path.insert(0, str(Path(__file__).parent / "store"))
from group_sample import LENGTHS, T, write_sample

from tests.conftest import ROOT

HEIGHT = (
    'def compute_reward(state, info):\n    return state.objects["butter_1"].pos[2], {"milestone": state.step // 40}\n'
)


@pytest.fixture
def group(tmp_path: Path) -> Path:
    return write_sample(tmp_path / "groups" / "g.zarr")


def program(folder: Path, source: str = HEIGHT) -> Path:
    path = folder / "other.py"
    path.write_text(source)
    return path


def artifact(folder: Path, task: str) -> Path:
    path = folder / "reward"
    path.mkdir()
    write_reward(path, Reward(task, HEIGHT))
    write_manifest(path, Manifest("reward", {}, 0, details={"task": task}))
    return path


def test_only_reward_and_milestone_change(group: Path, tmp_path: Path) -> None:
    before = digest_of(group)
    (handle,) = rescore([describe(group)], program(tmp_path), tmp_path / "else" / "where" / "new.zarr")
    old, new = open_group(group), open_group(handle.path)
    assert digest_of(group) == before and handle.path == tmp_path / "else" / "where" / "new.zarr"
    taken = old["mask"][:]
    np.testing.assert_array_equal(
        new["reward"][:], np.where(taken, old["object_pos"][:, :, 0, 2], 0).astype(np.float32)
    )
    np.testing.assert_array_equal(new["milestone"][:], np.where(taken, 2 * np.arange(1, T + 1) // 40, 0))
    for name in {spec.name for spec in GROUP_ARRAYS} - {"reward", "milestone"}:
        assert digest_of(new.path / name) == digest_of(old.path / name), name

    assert new.summary.mean_return == pytest.approx(new.returns().mean()) != old.summary.mean_return
    assert (new.summary.successes, new.summary.env_steps) == (old.summary.successes, old.summary.env_steps)
    assert new.attrs.params["reward"] == Reward("", HEIGHT).to_json()
    assert {name: recorded["digest"] for name, recorded in new.attrs.inputs.items()} == {
        "checkpoint": old.attrs.inputs["checkpoint"]["digest"],
        "group": before,
        "reward": digest_of(tmp_path / "other.py"),
    }
    for name, at in (("group", group), ("reward", tmp_path / "other.py")):
        assert resolve_reference(new.attrs.inputs[name], new.path).resolve() == at
    where = [resolve_reference(g.attrs.inputs["checkpoint"], g.path).resolve() for g in (old, new)]
    assert where[0] == where[1]


def test_the_first_reward_again_gives_the_first_group_again(group: Path, tmp_path: Path) -> None:
    """Over the detour of another reward, chunk by chunk the same bytes."""
    (first,) = rescore([describe(group)], program(tmp_path), tmp_path / "first.zarr")
    (zero,) = rescore([first], program(tmp_path, HEIGHT.replace(".pos[2]", ".pos[2] * 0.0")), tmp_path / "zero.zarr")
    (again,) = rescore([zero], program(tmp_path), tmp_path / "again.zarr")
    assert not open_group(zero.path)["reward"][:].any()
    for name in ("reward", "milestone"):
        assert digest_of(again.path / name) == digest_of(first.path / name)


def test_a_folder_for_several(group: Path, tmp_path: Path) -> None:
    other = write_sample(tmp_path / "groups" / "h.zarr", decisions=20)
    handles = rescore(map(describe, (group, other)), artifact(tmp_path, "libero_object/6"), tmp_path / "out")
    assert [handle.path.name for handle in handles] == ["g.zarr", "h.zarr"]
    assert open_group(tmp_path / "out" / "h.zarr")["length"][:].tolist() == np.minimum(LENGTHS, 20).tolist()


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("import os\n\n" + HEIGHT, r"other\.py, line 1: "),
        ("def compute_reward(state):\n    return 0.0\n", r"other\.py, line 1: "),
        ("def compute_reward(state, info):\n\n    return 1.0 / (state.step - 6)\n", r"other\.py, line 3: "),
    ],
)
def test_a_bad_program_is_one_line_and_leaves_nothing(group: Path, tmp_path: Path, source: str, message: str) -> None:
    with pytest.raises(RewardError, match=message) as caught:
        list(rescore([describe(group)], program(tmp_path, source), tmp_path / "out" / "new.zarr"))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_what_does_not_belong_together_is_refused(group: Path, tmp_path: Path) -> None:
    with pytest.raises(
        MismatchError, match=r"reward\.py is a reward for libero_goal/1, and the task is libero_object/6"
    ):
        list(rescore([describe(group)], artifact(tmp_path, "libero_goal/1"), tmp_path / "new.zarr"))
    with pytest.raises(ArtifactError, match="exists already"):
        list(rescore([describe(group)], program(tmp_path), group))
    with pytest.raises(ArtifactError, match=r"none\.py does not exist; expected a reward program"):
        list(rescore([describe(group)], tmp_path / "none.py", tmp_path / "new.zarr"))
    with pytest.raises(ArtifactError, match=r"nowhere does not exist: expected a reward"):
        list(rescore([describe(group)], tmp_path / "nowhere", tmp_path / "new.zarr"))


def test_one_name_is_for_one_group_and_never_for_the_one_that_is_read(group: Path, tmp_path: Path) -> None:
    before, other = digest_of(group), write_sample(tmp_path / "groups" / "h.zarr", decisions=20)
    with pytest.raises(UsageError, match="is the group that is read"):
        list(rescore([describe(group)], program(tmp_path), group, overwrite=True))
    assert digest_of(group) == before
    with pytest.raises(UsageError, match="names one group, and there are more"):
        list(rescore(map(describe, (group, other)), program(tmp_path), tmp_path / "new.zarr", overwrite=True))
    assert open_group(tmp_path / "new.zarr").attrs.inputs["group"]["digest"] == before


def test_a_failure_names_trajectory_decision_and_step(group: Path, tmp_path: Path) -> None:
    source = "def compute_reward(state, info):\n    return 1.0 / (state.step - 6)\n"
    with pytest.raises(RewardError, match=r"line 2: fails at trajectory 0, decision 2 \(step 6\): ZeroDivisionError"):
        list(rescore([describe(group)], program(tmp_path, source), tmp_path / "new.zarr"))


def test_a_name_that_the_state_does_not_have_is_answered_with_those_it_has(group: Path, tmp_path: Path) -> None:
    source = "def compute_reward(state, info):\n    return state.objects['nope_1'].lift\n"
    with pytest.raises(RewardError, match=r"KeyError: 'nope_1'; mend it; the state has objects .*butter_1"):
        list(rescore([describe(group)], program(tmp_path, source), tmp_path / "new.zarr"))


@pytest.mark.parametrize(
    "poses", ['[{"ee_pos": 1}]', '{"a": 1}', '[{"ee_pos": [0, 0, 1]}]', "[[1]]", "not JSON"], ids=lambda text: text[:12]
)
def test_broken_key_poses_are_one_line(group: Path, tmp_path: Path, poses: str) -> None:
    reward = artifact(tmp_path, "libero_object/6")
    (reward / "key_poses.json").write_text(poses)
    with pytest.raises(ArtifactError, match="cannot be read") as caught:
        list(rescore([describe(group)], reward, tmp_path / "new.zarr"))
    assert "\n" not in str(caught.value)


def test_any_file_is_a_program_with_a_byte_order_mark_too(group: Path, tmp_path: Path) -> None:
    (tmp_path / "reward.txt").write_text(HEIGHT, encoding="utf-8-sig")
    (handle,) = rescore([describe(group)], tmp_path / "reward.txt", tmp_path / "new.zarr")
    assert open_group(handle.path).attrs.params["reward"]["source"] == HEIGHT


def test_neither_simulator_nor_torch_is_needed(group: Path, tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from tgrpo_cli.main import main\n"
        f"sys.argv = ['tgrpo', 'rescore', {str(group)!r}, '--reward', {str(program(tmp_path))!r}, '--out', 'new.zarr']\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code, end.code\n"
        "print([name for name in ('torch', 'mujoco', 'robosuite', 'libero') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}
    )
    assert done.returncode == 0, done.stderr
    handle, loaded = done.stdout.splitlines()
    assert loaded == "[]"
    assert json.loads(handle)["kind"] == "group" and (tmp_path / "new.zarr").is_dir()
