"""`tgrpo export`: what it writes, that it acts as the adapter does, and that it says so when it does not."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

from stages import export as stage
from stages.errors import ArtifactError, MismatchError, UsageError
from stages.params import Params
from stages.policy import merging
from stages.policy.checkpoint import save_adapter
from stages.policy.layout import read_config
from stages.policy.policy import VLAPolicy
from stages.store.artifacts import find_partials
from stages.store.provenance import read_manifest
from stages.workspace import newest
from tests.conftest import ROOT, Run, short
from tests.policy.published import write_published
from tests.policy.test_checkpoint import write_shards
from tests.policy.tiny import LORA

PROPRIO = np.zeros((3, 8), np.float32)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a short pipe leaves: a group, its advantages, and a checkpoint; its adapter is then made to matter."""
    project = tmp_path_factory.mktemp("project")
    shutil.copy(ROOT / "params.yaml", project)
    (project / "data").mkdir()
    shutil.copytree(ROOT / "data" / "embedded", project / "data" / "embedded")
    main = f"{sys.executable} -m tgrpo_cli.main"
    pipe = f"{main} rollout --envs 2 --groups 1 {' '.join(short())} | {main} advantage | {main} update"
    done = subprocess.run(pipe, shell=True, cwd=project, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    disturb(project / "data" / "checkpoints" / "0001")
    return project / "data"


def disturb(adapter: Path, size: float = 0.02) -> None:
    generator = torch.Generator().manual_seed(0)
    state = load_file(adapter / "adapter_model.safetensors")
    for name in sorted(state):
        state[name] += size * torch.randn(state[name].shape, generator=generator)
    save_file(state, adapter / "adapter_model.safetensors", {"format": "pt"})


@pytest.fixture
def checkpoint(data: Path) -> Path:
    return data / "checkpoints" / "0001"


def act(path: Path, size: int = 96) -> np.ndarray:
    images = np.random.default_rng(0).integers(0, 256, (3, size, size, 3), dtype=np.uint8)
    policy = VLAPolicy.load(path, "cpu")
    return policy.act(images, PROPRIO, "pick up the butter", 1.0, torch.Generator().manual_seed(0)).tokens


def test_the_export_acts_as_the_adapter_and_not_as_the_base(
    params: Params, data: Path, checkpoint: Path, tmp_path: Path
) -> None:
    base, out = data / "embedded" / "openvla-tiny" / "libero_object" / "6", tmp_path / "out"
    handle = stage.export(params, checkpoint, out=out)
    assert (handle.kind, handle.task, handle.path) == ("checkpoint", "libero_object/6", out)
    assert (handle.extra["frames"], handle.extra["tokens"], handle.extra["tokens_equal"]) == (12, 168, 168)
    np.testing.assert_array_equal(act(out), act(checkpoint))
    assert (act(out) != act(base)).any()

    before, after = load_file(base / "model.safetensors"), load_file(out / "model.safetensors")
    assert before.keys() == after.keys()
    adapted = {name for name in before if not torch.equal(before[name], after[name])}
    assert "language_model.model.layers.0.self_attn.q_proj.weight" in adapted
    assert not any("norm" in name or name.endswith("bias") or "embed_tokens" in name for name in adapted)
    for name in ("config.json", "dataset_statistics.json", "tokenizer.json", "tokenizer_config.json"):
        assert (out / name).read_bytes() == (base / name).read_bytes()
    assert not (out / "adapter_config.json").exists()

    manifest = read_manifest(out, "checkpoint")
    own = read_manifest(checkpoint, "checkpoint").details
    assert own.items() <= manifest.details.items()
    assert manifest.details["merged_tensors"] == len(adapted)
    assert manifest.details["agreement"]["log_prob_difference"] < 5e-5 < manifest.details["agreement"]["adapter_effect"]
    assert set(manifest.inputs) == {"parent"}


def test_the_same_export_has_the_same_bytes(params: Params, checkpoint: Path, tmp_path: Path) -> None:
    first = stage.export(params, checkpoint, out=tmp_path / "a")
    assert stage.export(params, checkpoint, out=tmp_path / "b").digest == first.digest


@pytest.mark.parametrize("factor", [0.0, 0.9, 2.0])
def test_a_wrong_scale_is_caught_and_nothing_is_left(
    params: Params, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, factor: float
) -> None:
    right = merging._scale
    monkeypatch.setattr(merging, "_scale", lambda config: factor * right(config))
    with pytest.raises(MismatchError, match=r"does not act as it did: .*keep the adapter") as error:
        stage.export(params, checkpoint, out=tmp_path / "out")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists() and find_partials(tmp_path) == []


def small_change(params: Params, data: Path, tmp_path: Path, dtype: torch.dtype) -> Path:
    """An adapter that leaves nine tokens of ten as they were, on a base in `dtype`."""
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    shutil.copytree(data / "embedded" / "openvla-tiny" / "libero_object" / "6", base)
    state = load_file(base / "model.safetensors")
    save_file({name: tensor.to(dtype) for name, tensor in state.items()}, base / "model.safetensors", {"format": "pt"})
    policy = VLAPolicy.load(base, "cpu")
    policy.add_lora(params.policy.lora, seed=0)
    policy.save_adapter(adapter, "../base")
    disturb(adapter, 0.003)
    manifest = json.loads((data / "checkpoints" / "0001" / "tgrpo.json").read_text())
    (adapter / "tgrpo.json").write_text(json.dumps(manifest | {"inputs": {}}))
    return adapter


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_lost_adapter_is_caught_even_where_it_changes_few_tokens(
    params: Params, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    adapter, frames = small_change(params, data, tmp_path, dtype), [data / "groups" / "0001.zarr"]
    handle = stage.export(params, adapter, frames, tmp_path / "out")
    assert {tensor.dtype for tensor in load_file(tmp_path / "out" / "model.safetensors").values()} == {dtype}
    assert handle.extra["tokens_equal"] >= stage.LEAST_EQUAL * handle.extra["tokens"]
    monkeypatch.setattr(merging, "_scale", lambda config: 0.0)
    with pytest.raises(MismatchError, match="of that change at most"):
        stage.export(params, adapter, frames, tmp_path / "lost")


def test_how_much_must_agree() -> None:
    good = stage.Agreement(10, 140, 70, 70, True, 1e-5, 0.1, 1.0, None)
    assert good.holds
    assert not replace(good, sampled_equal=69).holds
    assert not replace(good, log_prob_difference=0.01).holds
    rounded = replace(good, exact=False, greedy_equal=65, sampled_equal=61, log_prob_difference=0.04, differing_gap=0.1)
    assert rounded.holds
    assert not replace(rounded, greedy_equal=64).holds
    assert not replace(rounded, log_prob_difference=0.06).holds


def test_frames_are_asked_for_where_there_are_none(
    params: Params, data: Path, checkpoint: Path, tmp_path: Path
) -> None:
    alone = tmp_path / "elsewhere" / "checkpoint"
    shutil.copytree(checkpoint, alone)
    config = json.loads((alone / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = str(data / "embedded" / "openvla-tiny" / "libero_object" / "6")
    (alone / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(UsageError, match="name a group with --frames"):
        stage.export(params, alone, out=tmp_path / "out")
    assert stage.export(params, alone, [data / "groups" / "0001.zarr"], tmp_path / "out").extra["frames"] == 12


def test_what_cannot_be_exported_is_refused(params: Params, data: Path, checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is a whole model already"):
        stage.export(params, data / "embedded" / "openvla-tiny" / "libero_object" / "6", out=tmp_path / "out")
    (tmp_path / "taken").mkdir()
    with pytest.raises(ArtifactError, match="exists already"):
        stage.export(params, checkpoint, out=tmp_path / "taken")


def merged(base: Path, adapter: Path, out: Path) -> Path:
    out.mkdir()
    merging.merge(base, adapter, out)
    return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_merging_is_pefts_in_float32_rounded_once_in_the_bases_shards(tmp_path: Path, dtype: torch.dtype) -> None:
    base, adapter = write_published(tmp_path / "base", dtype=dtype), tmp_path / "adapter"
    write_shards(base)
    (base / "tgrpo.json").write_text("{}")
    # A convolution as well as linear layers.
    lora = LORA.model_copy(update={"target_modules": ["q_proj", "fc1", "patch_embed.proj"]})
    policy = VLAPolicy.load(base, "cpu")  # in float32
    policy.add_lora(lora, seed=0)
    assert policy._peft is not None
    save_adapter(policy._peft, adapter, "../base")
    disturb(adapter)
    out = merged(base, adapter, tmp_path / "out")
    expected = VLAPolicy.load(adapter, "cpu")._peft.merge_and_unload().state_dict()  # type: ignore[union-attr]
    names = [path.name for path in sorted(base.iterdir()) if path.name != "tgrpo.json"]
    assert [path.name for path in sorted(out.iterdir())] == names
    changed = 0
    for file in sorted(base.glob("*.safetensors")):
        before, after = load_file(file), load_file(out / file.name)
        assert before.keys() == after.keys()
        for name, tensor in after.items():
            assert tensor.dtype == dtype
            torch.testing.assert_close(
                tensor, expected[name].to(dtype), rtol=0.0 if dtype == torch.float32 else 8e-3, atol=1e-6
            )
            changed += not torch.equal(tensor, before[name])
    assert changed == sum("lora_A" in name for name in load_file(adapter / "adapter_model.safetensors"))


def test_transformers_alone_loads_the_export(tmp_path: Path) -> None:
    base, adapter = write_published(tmp_path / "base"), tmp_path / "adapter"
    policy = VLAPolicy.load(base, "cpu")
    policy.add_lora(LORA, seed=0)
    policy.save_adapter(adapter, "../base")
    disturb(adapter)
    out = merged(base, adapter, tmp_path / "out")
    state = load_file(out / "model.safetensors")
    llama = LlamaForCausalLM(read_config(out).llama)
    prefix = "language_model."
    llama.load_state_dict(
        {name.removeprefix(prefix): t for name, t in state.items() if name.startswith(prefix)}, strict=True
    )
    np.testing.assert_array_equal(act(out, 256), act(adapter, 256))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"use_dora": True}, "use_dora; expected plain LoRA"),
        ({"peft_type": "LOHA"}, "peft_type 'LOHA'"),
        ({"bias": "all"}, "bias 'all'"),
        ({"alpha_pattern": {"q_proj": 3}}, "alpha_pattern"),
    ],
)
def test_adapters_that_are_no_plain_lora_are_refused(
    checkpoint: Path, data: Path, tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    adapter = tmp_path / "adapter"
    shutil.copytree(checkpoint, adapter)
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | changes))
    with pytest.raises(ArtifactError, match=message):
        merged(data / "embedded" / "openvla-tiny" / "libero_object" / "6", adapter, tmp_path / "out")


def test_an_adapter_for_other_weights_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(MismatchError, match="does not hold in that shape"):
        merged(write_published(tmp_path / "base"), checkpoint, tmp_path / "out")


def test_export_and_eval_as_typed(
    tgrpo: Callable[..., Run], tgrpo_here: Callable[..., Run], data: Path, checkpoint: Path, tmp_path: Path
) -> None:
    exported = tgrpo("export", checkpoint, "--out", tmp_path / "out")
    assert exported.code == 0, exported.err
    assert "84/84 greedy and 84/84 sampled tokens equal on 12 frames" in exported.err
    episodes = []
    for number, path in enumerate((checkpoint, tmp_path / "out")):
        run = tgrpo_here(
            "eval", path, "--episodes", 2, "--out", tmp_path / f"eval{number}", *short("eval.temperature=1")
        )
        assert run.code == 0, run.err
        episodes.append((tmp_path / f"eval{number}" / "episodes.json").read_bytes())
    assert episodes[0] == episodes[1]


def test_the_newest_checkpoint_is_the_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="data/checkpoints holds nothing yet"):
        newest("checkpoints")
    for name in ("0002", "0010", ".0011.partial-ab", "notes"):
        (tmp_path / "data" / "checkpoints" / name).mkdir(parents=True)
    assert newest("checkpoints") == Path("data/checkpoints/0010")
