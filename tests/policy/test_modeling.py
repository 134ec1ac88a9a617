from dataclasses import replace

import pytest
import torch
from peft import LoraConfig, get_peft_model

from stages.errors import ArtifactError, ParamsError
from stages.policy.config import PUBLISHED_TOWERS, OpenVLAConfig, tiny_config
from stages.policy.modeling import OpenVLAForActionPrediction
from stages.policy.vision import VisionTower
from tests.policy.tiny import ARCHITECTURE, make_policy


def test_published_sizes() -> None:
    """OpenVLA's fine-tuning log: 7,652,065,472 parameters with LoRA of rank 32, which are 110,828,288 of them.

    Their peft also put adapters on the output head and the two patch convolutions; today's `all-linear` does not.
    """
    with torch.device("meta"):
        model = OpenVLAForActionPrediction(OpenVLAConfig())
    assert sum(parameter.numel() for parameter in model.parameters()) == 7_652_065_472 - 110_828_288
    peft_model = get_peft_model(model, LoraConfig(r=32, lora_alpha=16, target_modules="all-linear"))
    head = 32 * (4096 + 32064)
    patches = 32 * (3 * 14 * 14 + 1024) + 32 * (3 * 14 * 14 + 1152)
    assert peft_model.get_nb_trainable_parameters()[0] == 110_828_288 - head - patches


def test_tiny_checkpoint_is_small_and_has_no_dead_weights() -> None:
    model = make_policy().model
    images = torch.randn(2, 6, 32, 32)
    model(torch.tensor([[1, 2, 3]]), images, torch.zeros(2, 8)).logits.square().sum().backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


def test_sequence_is_bos_patches_proprio_text() -> None:
    model = make_policy().model
    ids, pixels, proprio = torch.tensor([[1, 7, 8]]), torch.randn(2, 6, 32, 32), torch.randn(2, 8)
    embeds = model.embed(pixels, ids, proprio)
    text = model.get_input_embeddings()(ids)[0]
    assert embeds.shape == (2, 3 + 4 + 1, 32)  # 32 px in patches of 16: 4
    torch.testing.assert_close(embeds[0, 0], text[0])
    torch.testing.assert_close(embeds[:, 1:5], model.projector(model.vision_backbone(pixels)))
    torch.testing.assert_close(embeds[:, 5], model.proprio_projector(proprio))
    torch.testing.assert_close(embeds[1, 6:], text[1:])


def test_proprioception_token_is_optional() -> None:
    model = make_policy(proprio=False).model
    assert model.embed(torch.randn(1, 6, 32, 32), torch.tensor([[1, 7]])).shape[1] == 2 + 4


def test_action_tokens_are_the_last_256_below_the_padding() -> None:
    policy = make_policy()
    assert policy.model.action_ids == policy.token_ids == range(400 - 256, 400)


@pytest.mark.parametrize("stem", ["conv", "patch"])
@pytest.mark.parametrize("patch_size", [4, 8, 16])
def test_both_stems_give_one_token_per_patch(stem: str, patch_size: int) -> None:
    model = make_policy(stem=stem, patch_size=patch_size).model
    assert model.vision_backbone(torch.randn(1, 6, 32, 32)).shape == (1, (32 // patch_size) ** 2, 32)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patch_size": 15}, "patch_size = 15: does not divide"),
        ({"patch_size": 2}, "power of two"),
        ({"hidden_size": 34}, "hidden_size: width 34"),
        ({"dinov2": ARCHITECTURE.dinov2.model_copy(update={"heads": 3})}, "dinov2: width 16"),
        ({"siglip": ARCHITECTURE.siglip.model_copy(update={"depth": 1})}, "siglip.depth = 1"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(ParamsError, match=message):
        tiny_config(ARCHITECTURE.model_copy(update=changes), 32, {})


def test_another_vision_backbone_is_refused() -> None:
    config = OpenVLAConfig(use_fused_vision_backbone=False, vision_backbone_id="siglip-vit-so400m")
    with pytest.raises(ArtifactError, match="siglip-vit-so400m"):
        _ = config.towers


def test_features_are_those_of_the_second_to_last_block() -> None:
    """The published towers keep their last block and final norm, but no feature passes through them."""
    tower = PUBLISHED_TOWERS["vit_large_patch14_reg4_dinov2.lvd142m"]
    small = replace(tower, embed_dim=16, depth=3, num_heads=2, mlp_hidden=32)
    vision = VisionTower(small, image_size=28, stem="patch", tail=True)
    image = torch.randn(1, 3, 28, 28)
    features = vision(image)
    with torch.no_grad():
        vision.blocks[2].mlp.fc2.bias.add_(1.0)
        vision.norm.bias.add_(1.0)
    torch.testing.assert_close(vision(image), features, rtol=0, atol=0)
    with torch.no_grad():
        vision.blocks[1].mlp.fc2.bias.add_(1.0)
    torch.testing.assert_close(vision(image), features + 1.0)
