import json
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

from stages.errors import ArtifactError, MismatchError
from stages.policy.modeling import OpenVLAForActionPrediction
from stages.policy.policy import VLAPolicy
from tests.policy.tiny import INSTRUCTION, LORA, NORM_STATS, make_policy, observations

TOKENS = np.full((2, 7), 300)


def scores(policy: VLAPolicy) -> np.ndarray:
    images, proprio = observations(2)
    with torch.no_grad():
        return policy.log_prob(images, proprio, INSTRUCTION, TOKENS).log_prob.numpy()


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def base(tmp_path: Path) -> Path:
    make_policy().save_base(tmp_path / "base")
    return tmp_path / "base"


@pytest.fixture
def adapter(base: Path) -> Path:
    policy = VLAPolicy.load(base, device="cpu")
    policy.add_lora(LORA, seed=0)
    with torch.no_grad():
        for _, parameter in policy.trainable_parameters():
            parameter.add_(0.1)
    policy.save_adapter(base.parent / "adapter", str(base))
    return base.parent / "adapter"


def test_base_round_trip_keeps_the_policy_and_its_bytes(base: Path, tmp_path: Path) -> None:
    policy = VLAPolicy.load(base, device="cpu")
    np.testing.assert_array_equal(scores(policy), scores(make_policy()))
    assert policy.trainable_parameters() == [] and not policy.has_adapter
    policy.save_base(tmp_path / "again")
    assert contents(tmp_path / "again") == contents(base)


def test_trainable_base_trains_everything(base: Path) -> None:
    policy = VLAPolicy.load(base, device="cpu", trainable=True)
    assert len(policy.trainable_parameters()) == len(list(policy.model.parameters()))


def test_adapter_round_trip_keeps_the_policy_and_its_bytes(adapter: Path, base: Path, tmp_path: Path) -> None:
    policy = VLAPolicy.load(adapter, device="cpu", trainable=True)
    assert policy.has_adapter
    assert np.abs(scores(policy) - scores(make_policy())).max() > 1e-3
    assert all("lora_" in name for name, _ in policy.trainable_parameters())
    policy.save_adapter(tmp_path / "again", str(base))
    assert contents(tmp_path / "again") == contents(adapter)
    assert VLAPolicy.load(adapter, device="cpu").trainable_parameters() == []


def test_peft_alone_reads_the_adapter(adapter: Path, base: Path) -> None:
    model = OpenVLAForActionPrediction.from_pretrained(base)
    peft_model = PeftModel.from_pretrained(model, str(adapter)).eval()
    mine = VLAPolicy.load(adapter, device="cpu")
    ids, pixels, proprio = torch.tensor([[1, 3, 300]]), torch.randn(1, 6, 32, 32), torch.zeros(1, 8)
    with torch.no_grad():
        torch.testing.assert_close(peft_model(ids, pixels, proprio).logits, mine.model(ids, pixels, proprio).logits)


def test_base_is_found_from_the_working_directory_or_the_adapter(
    adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = json.loads((adapter / "adapter_config.json").read_text())
    for recorded, folder in (("base", tmp_path), ("../base", "/")):
        (adapter / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": recorded}))
        monkeypatch.chdir(folder)
        VLAPolicy.load(adapter, device="cpu")
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": "gone"}))
    with pytest.raises(ArtifactError, match="base checkpoint gone is not there"):
        VLAPolicy.load(adapter, device="cpu")


def test_dataset_statistics_replace_the_configs(base: Path) -> None:
    other = {"libero_goal": NORM_STATS["libero_object"]}
    (base / "dataset_statistics.json").write_text(json.dumps(other))
    assert VLAPolicy.load(base, device="cpu").config.norm_stats == other


def edit_weights(path: Path, **changes: torch.Tensor | None) -> None:
    state = load_file(path)
    for name in changes:
        state.pop(name, None)
    save_file(
        {**state, **{name: tensor for name, tensor in changes.items() if tensor is not None}}, path, {"format": "pt"}
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"projector.fc1.bias": None}, "lacks weights: projector.fc1.bias"),
        ({"projector.fc9.bias": torch.zeros(2)}, "does not have: projector.fc9.bias"),
        ({"projector.fc1.bias": torch.zeros(2)}, "another shape: projector.fc1.bias"),
    ],
)
def test_weights_that_do_not_fit_are_named(base: Path, change: dict, message: str) -> None:
    edit_weights(base / "model.safetensors", **change)
    with pytest.raises(ArtifactError, match=message):
        VLAPolicy.load(base, device="cpu")


LORA_WEIGHT = "base_model.model.projector.fc1.lora_A.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({LORA_WEIGHT: None}, "lacks weights"),
        ({"base_model.model.projector.fc9.lora_A.weight": torch.zeros(2)}, "does not have"),
        ({LORA_WEIGHT: torch.zeros(2)}, "another shape"),
    ],
)
def test_adapter_weights_that_do_not_fit_are_named(adapter: Path, change: dict, message: str) -> None:
    edit_weights(adapter / "adapter_model.safetensors", **change)
    with pytest.raises(ArtifactError, match=message):
        VLAPolicy.load(adapter, device="cpu")


def test_broken_folders_get_one_clear_line(base: Path, adapter: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text('{"model_type": "bert"}')
    for folder, message in (
        (tmp_path / "none", "no checkpoint"),
        (tmp_path / "empty", "no checkpoint"),
        (other, "'bert'"),
    ):
        with pytest.raises(ArtifactError, match=message) as error:
            VLAPolicy.load(folder, device="cpu")
        assert "\n" not in str(error.value)
    (adapter / "adapter_model.safetensors").write_bytes(b"half")
    with pytest.raises(ArtifactError, match="cannot be read as an adapter"):
        VLAPolicy.load(adapter, device="cpu")
    (base / "model.safetensors").write_bytes(b"half")
    with pytest.raises(ArtifactError, match="cannot be read as a checkpoint"):
        VLAPolicy.load(base, device="cpu")
    (base / "model.safetensors").unlink()
    with pytest.raises(ArtifactError, match="cannot be read as a checkpoint"):
        VLAPolicy.load(base, device="cpu")
    (base / "config.json").write_text("{")
    with pytest.raises(ArtifactError, match="cannot be read"):
        VLAPolicy.load(base, device="cpu")


def test_saving_the_wrong_kind_is_refused(tmp_path: Path) -> None:
    policy = make_policy()
    with pytest.raises(MismatchError, match="no adapter"):
        policy.save_adapter(tmp_path / "a", "base")
    policy.add_lora(LORA, seed=0)
    with pytest.raises(MismatchError, match="has an adapter"):
        policy.save_base(tmp_path / "b")
