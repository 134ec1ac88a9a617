import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

from stages.errors import ArtifactError, MismatchError
from stages.policy import checkpoint
from stages.policy.config import tiny_config
from stages.policy.modeling import OpenVLAForActionPrediction
from stages.policy.policy import VLAPolicy
from stages.policy.tokenizer import tiny_tokenizer
from tests.policy.tiny import ARCHITECTURE, INSTRUCTION, LORA, NORM_STATS, SIZE, make_policy, observations

ROOT = Path(__file__).parents[2]

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
        ({LORA_WEIGHT: torch.full((4, 32), torch.inf)}, f"{LORA_WEIGHT} holds NaN or infinite"),
    ],
)
def test_adapter_weights_that_do_not_fit_are_named(adapter: Path, change: dict, message: str) -> None:
    edit_weights(adapter / "adapter_model.safetensors", **change)
    with pytest.raises(ArtifactError, match=message):
        VLAPolicy.load(adapter, device="cpu")


def write_shards(base: Path) -> None:
    """model.safetensors as two shards under an index, as the published layout has them."""
    state = load_file(base / "model.safetensors")
    (base / "model.safetensors").unlink()
    names = sorted(state)
    weight_map = {}
    for number, part in enumerate((names[::2], names[1::2]), start=1):
        file = f"model-{number:05}-of-00002.safetensors"
        save_file({name: state[name] for name in part}, base / file, {"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    (base / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def test_shards_under_an_index_load(base: Path) -> None:
    whole = VLAPolicy.load(base, device="cpu").model.state_dict()
    write_shards(base)
    for name, tensor in VLAPolicy.load(base, device="cpu").model.state_dict().items():
        assert torch.equal(tensor, whole[name]), name
    index = base / "model.safetensors.index.json"
    text = index.read_text()
    index.write_text(text.replace("model-00001-of-00002", "../base/model-00001-of-00002"))
    with pytest.raises(ArtifactError, match=r"names \.\./base/model-00001-of-00002\.safetensors, which is not there"):
        VLAPolicy.load(base, device="cpu")  # there, but no part of the checkpoint
    index.write_text(text)
    (base / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ArtifactError, match=r"names model-00002-of-00002\.safetensors, which is not there"):
        VLAPolicy.load(base, device="cpu")
    index.write_text("[]")
    with pytest.raises(ArtifactError, match="is no index of weights"):
        VLAPolicy.load(base, device="cpu")


def test_a_cut_off_file_is_told_from_a_broken_one(base: Path) -> None:
    file = base / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ArtifactError, match=r"model.safetensors is cut off: \d+ of \d+ bytes"):
        VLAPolicy.load(base, device="cpu")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_no_numbers_are_named(base: Path, value: float) -> None:
    bias = load_file(base / "model.safetensors")["projector.fc1.bias"]
    bias[3] = value
    edit_weights(base / "model.safetensors", **{"projector.fc1.bias": bias})
    with pytest.raises(ArtifactError, match=r"projector\.fc1\.bias holds NaN or infinite values"):
        VLAPolicy.load(base, device="cpu")


def test_quantised_weights_are_refused(base: Path) -> None:
    edit_weights(base / "model.safetensors", **{"projector.fc1.bias": torch.zeros(3, dtype=torch.int8)})
    with pytest.raises(ArtifactError, match=r"projector.fc1.bias is stored as I8"):
        VLAPolicy.load(base, device="cpu")


def test_weights_come_in_the_dtype_that_is_asked_for(base: Path) -> None:
    state = {name: tensor.bfloat16() for name, tensor in load_file(base / "model.safetensors").items()}
    save_file(state, base / "model.safetensors", {"format": "pt"})
    for name, dtype in (("auto", torch.float32), ("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        model = VLAPolicy.load(base, device="cpu", dtype=name).model
        assert {parameter.dtype for parameter in model.parameters()} == {dtype}
        for key, parameter in model.named_parameters():
            assert torch.equal(parameter, state[key].to(dtype)), key
    as_stored, _ = checkpoint.load_base(base, checkpoint.compute_dtype("auto", torch.device("meta")))
    assert as_stored.dtype == torch.bfloat16


def test_one_of_several_norm_stats_is_taken_and_one_may_have_no_mask(base: Path) -> None:
    no_mask = {key: NORM_STATS["libero_object"]["action"][key] for key in ("q01", "q99")}
    proprio = NORM_STATS["libero_object"]["proprio"]
    stats = NORM_STATS | {"libero_goal_no_noops": {"action": no_mask, "proprio": proprio}}
    (base / "dataset_statistics.json").write_text(json.dumps(stats))
    tokens = np.full((1, 7), 200)
    with_mask = VLAPolicy.load(base, device="cpu", suite="libero_object").decode_tokens(tokens)
    without = VLAPolicy.load(base, device="cpu", suite="libero_goal").decode_tokens(tokens)
    np.testing.assert_allclose(with_mask[0, :6], without[0, :6])  # the same bounds
    with pytest.raises(ArtifactError, match=r"\['libero_object', 'libero_goal_no_noops'\]; expected libero_10 or"):
        VLAPolicy.load(base, device="cpu", suite="libero_10")


def preprocessor(**changes: object) -> str:
    mean, std = [0.25, 0.5, 0.75], [0.5, 0.25, 0.125]
    towers = [{"mean": mean, "std": std, "inplace": False}, {"mean": std, "std": mean, "inplace": False}]
    return json.dumps({"means": [[1, 1, 1]] * 2, "stds": [[1, 1, 1]] * 2, "tvf_normalize_params": towers} | changes)


def test_the_processors_normalisation_is_that_which_it_applies(base: Path) -> None:
    file = base / "preprocessor_config.json"
    for text, mean in ((preprocessor(), [0.25, 0.5, 0.75]), (preprocessor(tvf_normalize_params=None), [1.0, 1.0, 1.0])):
        file.write_text(text)
        found = VLAPolicy.load(base, device="cpu").config.image_normalization
        assert found is not None and found["mean"][0] == mean
    for broken in (preprocessor(tvf_normalize_params=[{"mean": [1]}]), preprocessor(tvf_normalize_params=[{}, {}])):
        file.write_text(broken)
        with pytest.raises(ArtifactError, match=r"preprocessor_config.json: expected tvf_normalize_params"):
            VLAPolicy.load(base, device="cpu")


def test_vision_overrides_beside_the_config_set_the_towers_sizes(base: Path) -> None:
    config = json.loads((base / "config.json").read_text())
    sizes = config.pop("vision_overrides")
    (base / "config.json").write_text(json.dumps(config))
    with pytest.raises(ArtifactError):  # towers as large as published
        VLAPolicy.load(base, device="cpu")
    towers = dict(zip(("featurizer", "fused_featurizer"), sizes, strict=True))
    towers["featurizer"] = {**sizes[0], "act": "a key that is not ours"}
    (base / "vision_overrides.json").write_text(json.dumps(towers))
    VLAPolicy.load(base, device="cpu")
    (base / "vision_overrides.json").write_text(json.dumps({"featurizer": sizes[0]}))
    with pytest.raises(ArtifactError, match=r"vision_overrides.json: expected an object for each"):
        VLAPolicy.load(base, device="cpu")


def test_remote_code_is_never_run(base: Path) -> None:
    for name in ("config.json", "tokenizer_config.json"):
        config = json.loads((base / name).read_text())
        remote = {
            "AutoConfig": "remote.Config",
            "AutoModelForVision2Seq": "remote.Model",
            "AutoTokenizer": ["remote.T", None],
        }
        (base / name).write_text(json.dumps(config | {"auto_map": remote}))
    (base / "remote.py").write_text(f"open({str(base / 'executed')!r}, 'w')\nclass Config: pass\nModel = T = Config\n")
    VLAPolicy.load(base, device="cpu")
    assert not (base / "executed").exists()


def test_a_folder_without_a_readable_tokenizer_is_one_line(base: Path) -> None:
    (base / "tokenizer.json").write_text("{}")
    with pytest.raises(ArtifactError, match=r"tokenizer.json cannot be read") as error:
        VLAPolicy.load(base, device="cpu")
    assert "\n" not in str(error.value)
    (base / "tokenizer.json").rename(base / "tokenizer.model")
    with pytest.raises(ArtifactError, match=r"a tokenizer.model alone is not enough"):
        VLAPolicy.load(base, device="cpu")


def test_a_broken_configuration_is_one_line(base: Path) -> None:
    config = json.loads((base / "config.json").read_text())
    config["text_config"]["hidden_size"] = "wide"
    (base / "config.json").write_text(json.dumps(config))
    with pytest.raises(ArtifactError, match=r"config.json cannot be read") as error:
        VLAPolicy.load(base, device="cpu")
    assert "\n" not in str(error.value)


LOADS = """
import sys, torch
from pathlib import Path
from stages.policy.checkpoint import load_base

def peak():
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))

load_base(Path(sys.argv[1]), torch.float32)  # what the libraries take once, measured on a small model
before = peak()
model, _ = load_base(Path(sys.argv[2]), {"bfloat16": torch.bfloat16, "float32": torch.float32}[sys.argv[3]])
size = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
print((peak() - before) / size, size)
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """320 MB of bfloat16 weights."""
    folder = tmp_path_factory.mktemp("large")
    config = tiny_config(
        ARCHITECTURE.model_copy(update={"hidden_size": 1024, "layers": 14, "intermediate_size": 2752}), SIZE, NORM_STATS
    )
    with torch.device("meta"):
        model = OpenVLAForActionPrediction(config)
    state = {
        name: torch.full(parameter.shape, 0.5, dtype=torch.bfloat16) for name, parameter in model.named_parameters()
    }
    config.save_pretrained(folder)
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    tiny_tokenizer(400, 256).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_loading_takes_little_more_than_the_models_size(base: Path, large: Path, dtype: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LOADS, str(base), str(large), dtype], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    ratio, size = map(float, done.stdout.split())
    assert size > 300e6
    assert 0.9 < ratio < 1.3


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
