"""The published layout: a small checkpoint made by OpenVLA's own code loads here and computes the same numbers."""

import json
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch

from stages.policy.config import VisionTowerConfig
from stages.policy.policy import VLAPolicy

GOLDEN = Path(__file__).resolve().parents[3] / "shared" / "golden"

pytestmark = pytest.mark.skipif(not GOLDEN.is_dir(), reason="the golden files are not here")


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> VLAPolicy:
    """The golden checkpoint, its tower sizes written into config.json (a published one needs none)."""
    folder = tmp_path_factory.mktemp("model_a")
    for file in (GOLDEN / "model_a").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    sizes = json.loads((folder / "vision_overrides.json").read_text())
    known = {field.name for field in fields(VisionTowerConfig)}
    config = json.loads((folder / "config.json").read_text())
    config["vision_overrides"] = [
        {name: value for name, value in sizes[tower].items() if name in known}
        for tower in ("featurizer", "fused_featurizer")
    ]
    (folder / "config.json").write_text(json.dumps(config))
    return VLAPolicy.load(folder, device="cpu")


@pytest.fixture(scope="module")
def expected() -> dict[str, np.ndarray]:
    return dict(np.load(GOLDEN / "model_a.npz"))


@pytest.fixture(scope="module")
def pixel_values() -> torch.Tensor:
    return torch.from_numpy(np.load(GOLDEN / "images.npz")["pixel_values"])


def test_vision_features_and_projector_match(policy: VLAPolicy, expected: dict, pixel_values: torch.Tensor) -> None:
    with torch.no_grad():
        features = policy.model.vision_backbone(pixel_values)
        projected = policy.model.projector(features)
    np.testing.assert_allclose(features.numpy(), expected["vision_out"], atol=1e-4)
    np.testing.assert_allclose(projected.numpy(), expected["projected"], atol=1e-4)


def test_normalisation_matches(policy: VLAPolicy, pixel_values: torch.Tensor) -> None:
    images = np.load(GOLDEN / "images.npz")["libero224"]
    np.testing.assert_allclose(policy._transform(images).numpy(), pixel_values.numpy(), atol=1e-6)


@pytest.mark.parametrize("sample", range(4))
def test_logits_match(policy: VLAPolicy, expected: dict, pixel_values: torch.Tensor, sample: int) -> None:
    ids = torch.from_numpy(expected[f"s{sample}_input_ids"])[None]
    with torch.no_grad():
        logits = policy.model(ids, pixel_values[sample : sample + 1], logits_to_keep=8).logits
    np.testing.assert_allclose(logits[0].numpy(), expected["s_logits_full8"][sample], atol=1e-4)


def test_prompt_ids_match(policy: VLAPolicy, expected: dict) -> None:
    instruction = str(expected["prompts"][0]).removeprefix("In: What action should the robot take to ").split("?")[0]
    want = expected["s0_input_ids"][: expected["prompt_len"][0]]
    np.testing.assert_array_equal(policy._prompt(instruction)[0].numpy(), want)


def test_greedy_tokens_and_environment_actions_match(policy: VLAPolicy, expected: dict) -> None:
    images = np.load(GOLDEN / "images.npz")["libero224"]
    for sample in range(4):
        instruction = (
            str(expected["prompts"][sample]).removeprefix("In: What action should the robot take to ").split("?")[0]
        )
        if (expected["pa_tokens"][sample] < 31744).any():
            continue  # its best token is no action; this policy never takes such a one
        acted = policy.act(images[sample : sample + 1], np.zeros((1, 8), np.float32), instruction, temperature=0.0)
        np.testing.assert_array_equal(acted.tokens[0], expected["pa_tokens"][sample])
        np.testing.assert_allclose(acted.action[0], expected["pa_env_actions"][sample], atol=1e-12)


def test_token_codec_matches(policy: VLAPolicy) -> None:
    golden = np.load(GOLDEN / "actions.npz")
    tokenizer = policy._codec.tokenizer
    np.testing.assert_array_equal(tokenizer.encode(golden["enc_in_f64"]), golden["enc_ids_f64"])
    np.testing.assert_array_equal(tokenizer.decode(golden["dec_ids"]), golden["dec_values"])
    np.testing.assert_array_equal(tokenizer.decode(golden["enc_ids_f64"]), golden["roundtrip"])


def test_a_save_keeps_every_published_weight(policy: VLAPolicy, tmp_path: Path) -> None:
    from safetensors import safe_open

    policy.save_base(tmp_path)
    with (
        safe_open(GOLDEN / "model_a" / "model.safetensors", "pt") as before,
        safe_open(tmp_path / "model.safetensors", "pt") as after,
    ):
        assert set(after.keys()) == set(before.keys())
