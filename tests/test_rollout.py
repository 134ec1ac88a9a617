"""Sampling groups: side by side or one after the other, what they hold is the same; paths; stop rules."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from stages.errors import ArtifactError, MismatchError, SimulatorError, UsageError
from stages.params import Params, load_params
from stages.policy.policy import VLAPolicy
from stages.rewards.scorer import Scorer
from stages.rollout import group_paths, rollout
from stages.sampling import Wanted, open_sampling_env, sample_groups
from stages.store.artifacts import digest_of
from stages.store.groups import open_group
from stages.workspace import open_policy, task_reward

ROOT = Path(__file__).parents[1]
QUICK = ["rollout.envs=2", "rollout.groups=3", "rollout.max_env_steps=20", "sim.image_size=96"]


def params_with(*overrides: str) -> Params:
    return load_params(ROOT / "params.yaml", [*QUICK, *overrides])


@pytest.fixture(scope="module")
def policy() -> Iterator[VLAPolicy]:
    params = params_with()
    yield open_policy(params, ROOT / params.policy.base_of(params.task))


def sample(policy: VLAPolicy, params: Params, folder: Path, indices: tuple[int, ...] = (0, 1, 2)) -> list[Path]:
    wanted = [Wanted(index, folder / f"{index}.zarr", {}) for index in indices]
    with open_sampling_env(params) as env, Scorer(task_reward(params, env)) as scorer:
        handles = list(sample_groups(policy, env, scorer, params, wanted, iteration=1))
    return [handle.path for handle in handles]


def test_groups_side_by_side_have_the_bytes_of_groups_one_by_one(policy: VLAPolicy, tmp_path: Path) -> None:
    alone = sample(policy, params_with("rollout.parallel=1"), tmp_path / "alone")
    together = sample(policy, params_with("rollout.parallel=2"), tmp_path / "together")  # the third follows the first
    one_missing = sample(policy, params_with("rollout.parallel=3"), tmp_path / "rest", indices=(2,))
    assert [path.name for path in together] == ["0.zarr", "1.zarr", "2.zarr"]
    assert [digest_of(path) for path in together] == [digest_of(path) for path in alone]
    assert digest_of(one_missing[0]) == digest_of(alone[2])
    assert len({digest_of(path) for path in alone}) == 3
    assert len({open_group(path).attrs.initial_state for path in alone}) == 3


def test_trajectories_of_a_group_start_alike_and_part(policy: VLAPolicy, tmp_path: Path) -> None:
    (path,) = sample(policy, params_with("rollout.groups=1"), tmp_path, indices=(0,))
    group = open_group(path)
    images, tokens = group["image"][:, 0], group["action_token"][:]
    np.testing.assert_array_equal(images[0], images[1])
    assert (tokens[0] != tokens[1]).any()
    assert group["length"][:].tolist() == [5, 5]  # 20 environment steps in decisions of 4


def test_nothing_is_left_of_a_group_whose_path_is_taken(policy: VLAPolicy, tmp_path: Path) -> None:
    (tmp_path / "1.zarr").mkdir()
    with pytest.raises(ArtifactError, match=r"1\.zarr exists"):
        sample(policy, params_with("rollout.parallel=2"), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["1.zarr"]


def test_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert group_paths(Path("g.zarr"), 1) == [Path("g.zarr")]
    assert group_paths(Path("g"), 2) == [Path("g/000.zarr"), Path("g/001.zarr")]
    (tmp_path / "data" / "groups" / "0007.zarr").mkdir(parents=True)
    assert [path.name for path in group_paths(None, 2)] == ["0008.zarr", "0009.zarr"]
    with pytest.raises(UsageError, match="names one group, but 2 are asked for"):
        group_paths(Path("g.zarr"), 2)


@pytest.mark.parametrize(
    ("override", "error"),
    [("sim.assets=libero", SimulatorError), ("sim.image_size=64", MismatchError)],
)
def test_what_is_wrong_is_told_before_the_policy_is_loaded(
    override: str, error: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loading OpenVLA-7B takes minutes."""

    def load(*_: object, **__: object) -> None:
        raise AssertionError("the policy was loaded")

    monkeypatch.setattr(VLAPolicy, "load", load)
    params = params_with(override, f"sim.assets_dir={tmp_path}")
    with pytest.raises(error):
        list(rollout(params, ROOT / params.policy.base_of(params.task), out=tmp_path / "groups"))
