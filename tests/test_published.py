"""Published checkpoints in the commands: no tgrpo.json, LIBERO's own setting, norm_stats of several suites."""

import json
import logging
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from stages import workspace
from stages.describe import describe
from stages.errors import ArtifactError, MismatchError, TgrpoError
from stages.params import Params
from stages.store.artifacts import digest_of
from stages.store.provenance import Manifest, hub_name, reference, resolve_reference, write_manifest
from stages.workspace import open_checkpoint, open_policy, read_checkpoint
from tests.conftest import Run
from tests.policy.published import write_published
from tests.policy.tiny import LORA, NORM_STATS

Tgrpo = Callable[..., Run]


@pytest.fixture
def published(tmp_path: Path) -> Path:
    return write_published(tmp_path / "published")


def test_what_a_published_checkpoint_was_made_for(published: Path) -> None:
    details = read_checkpoint(published).details
    assert (details["image_size"], details["action_repeat"], details["iteration"]) == (256, 1, 0)
    handle = describe(published)
    assert (handle.kind, handle.task, handle.digest) == ("checkpoint", None, digest_of(published))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "bert"}, r"model_type is 'bert'; expected 'openvla'"),
        ({"image_resize_strategy": "none"}, r"image_resize_strategy is 'none'.*copy its tgrpo\.json"),
        ("{", r"config\.json cannot be read"),
    ],
)
def test_models_of_another_kind_are_refused(published: Path, changes: dict[str, str] | str, message: str) -> None:
    file = published / "config.json"
    file.write_text(changes if isinstance(changes, str) else json.dumps(json.loads(file.read_text()) | changes))
    with pytest.raises(ArtifactError, match=message):
        read_checkpoint(published)


def test_params_that_do_not_fit_give_way_to_liberos_protocol_and_others_stay(
    published: Path, params: Params, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    fitted, found = open_checkpoint(params, published)
    assert found == published
    assert fitted.sim == params.sim.benchmark() != params.sim
    assert fitted.model_copy(update={"sim": params.sim}) == params
    assert len(caplog.records) == 1 and "images of 256 pixels" in caplog.text
    own = fitted.model_copy(update={"sim": fitted.sim.model_copy(update={"settle_steps": 3})})
    assert open_checkpoint(own, published)[0] == own
    assert len(caplog.records) == 1


def test_the_embedded_checkpoint_is_left_to_params(embedded: Path, params: Params) -> None:
    assert open_checkpoint(params, embedded) == (params, embedded)


def test_the_tasks_suite_chooses_the_statistics(published: Path, params: Params) -> None:
    other = {"libero_goal_no_noops": NORM_STATS["libero_object"]}
    (published / "dataset_statistics.json").write_text(json.dumps(other))
    fitted, _ = open_checkpoint(params, published)
    with pytest.raises(ArtifactError, match=r"norm_stats hold \['libero_goal_no_noops'\]; expected libero_object or"):
        open_policy(fitted, published)
    open_policy(fitted.model_copy(update={"task": "libero_goal/1"}), published)


def adapter_on(base: Path, folder: Path, params: Params) -> Path:
    policy = open_policy(params, base)
    policy.add_lora(LORA, seed=0)
    policy.save_adapter(folder, f"../{base.name}")
    details = {**read_checkpoint(base).details, "iteration": 1}
    write_manifest(
        folder,
        Manifest(kind="checkpoint", params={}, seed=0, inputs={"base": reference(base, folder)}, details=details),
    )
    return folder


def test_an_adapter_runs_as_its_base_and_on_no_other(published: Path, params: Params, tmp_path: Path) -> None:
    fitted, _ = open_checkpoint(params, published)
    adapter = adapter_on(published, tmp_path / "adapter", fitted)
    assert open_checkpoint(params, adapter)[0] == fitted
    open_policy(fitted, adapter)
    shutil.rmtree(published)
    write_published(published, seed=1)
    with pytest.raises(MismatchError, match="is an adapter for another base") as error:
        open_policy(fitted, adapter)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("dtype", "free", "remedy"),
    [("float32", 0.9, "set policy.dtype=bfloat16 "), ("float32", 0.4, "close what"), ("bfloat16", 0.4, "close what")],
)
def test_too_little_memory_is_found_out_before_loading(
    published: Path, params: Params, monkeypatch: pytest.MonkeyPatch, dtype: str, free: float, remedy: str
) -> None:
    size = (published / "model.safetensors").stat().st_size  # float32
    monkeypatch.setattr("stages.sim.memory.available_bytes", lambda: int(free * size))
    monkeypatch.setattr("stages.policy.weights.StoredWeights.read", lambda *_: pytest.fail("a weight was read"))
    policy = params.policy.model_copy(update={"dtype": dtype, "device": "cpu"})
    fitted, _ = open_checkpoint(params.model_copy(update={"policy": policy}), published)
    with pytest.raises(TgrpoError, match=r"its weights take 0\.\d GiB on cpu, where 0\.\d GiB are free; " + remedy):
        open_policy(fitted, published)


def test_a_model_of_the_hub_is_named_and_not_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = "c0ffee" + "0" * 34
    snapshot = tmp_path / "home" / "hub" / "models--me--model" / "snapshots" / commit
    write_published(snapshot)
    assert hub_name(snapshot) == f"me/model@{commit}"
    assert hub_name(tmp_path) is None
    recorded = reference(snapshot, tmp_path / "group.zarr")
    assert recorded == {"hub": f"me/model@{commit}", "digest": digest_of(snapshot)}
    name = resolve_reference(recorded, tmp_path / "elsewhere" / "group.zarr")
    assert name == Path(f"me/model@{commit}")
    asked = []
    monkeypatch.setattr("stages.policy.hub.fetch", lambda model: asked.append(str(model)) or snapshot)
    assert workspace.locate(name) == snapshot
    assert asked == [f"me/model@{commit}"]


def test_the_pipe_on_a_published_checkpoint(tgrpo_here: Tgrpo, project: Path, published: Path) -> None:
    main = f"{sys.executable} -m tgrpo_cli.main"
    task = "--task libero_object/7"
    pipe = (
        f"{main} rollout --base {published} {task} --envs 2 --groups 1 --set rollout.max_env_steps=3"
        f" | {main} advantage --set advantage.min_return_std=0 | {main} update"
    )
    done = subprocess.run(pipe, shell=True, cwd=project, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["iteration"] == 1
    evaluation = tgrpo_here(
        *("eval", "data/checkpoints/0001", *task.split(), "--episodes", 1),
        *("--set", "eval.max_env_steps=2", "--set", "eval.videos=0"),
    )
    assert evaluation.code == 0, evaluation.err
    recorded = json.loads((project / "data/evals/0001/tgrpo.json").read_text())["params"]["sim"]
    assert (recorded["image_size"], recorded["action_repeat"], recorded["physics"]) == (256, 1, "exact")
    direct = tgrpo_here(
        "eval", published, *task.split(), "--episodes", 1, "--set", "eval.max_env_steps=2", "--set", "eval.videos=0"
    )
    assert direct.code == 0, direct.err


def test_a_folder_that_looks_like_a_hub_id_is_a_folder(project: Path, tgrpo: Tgrpo) -> None:
    missing = tgrpo("eval", "--base", "data/missing")
    assert missing.code == 1 and "data/missing does not exist" in missing.err


def test_a_folder_that_is_no_checkpoint_is_said_to_be_none(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("nothing")
    with pytest.raises(ArtifactError, match=r"is no checkpoint: it has neither a config\.json nor a tgrpo\.json"):
        read_checkpoint(tmp_path)


def test_another_center_crop_than_in_training_is_refused(published: Path, params: Params, tmp_path: Path) -> None:
    fitted, _ = open_checkpoint(params, published)
    adapter = adapter_on(published, tmp_path / "adapter", fitted)
    manifest = read_checkpoint(adapter)
    write_manifest(adapter, replace(manifest, params=fitted.model_dump(include={"policy"})))
    open_policy(fitted, adapter)
    other = fitted.model_copy(update={"policy": fitted.policy.model_copy(update={"center_crop": False})})
    with pytest.raises(MismatchError, match=r"trained with policy\.center_crop = true.*--set policy\.center_crop=true"):
        open_policy(other, adapter)
    open_policy(other, published)  # nobody knows how that was trained
