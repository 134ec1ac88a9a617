"""Both vision towers block by block, and the projector."""

from collections.abc import Iterator

import torch
from torch import Tensor

from stages.policy.modeling import OpenVLAForActionPrediction
from stages.policy.parity.checks import STATE, Check, Fixture, close
from stages.policy.vision import VisionTower


@torch.inference_mode()
def compare_vision(model: OpenVLAForActionPrediction, fixture: Fixture, pixel_values: Tensor) -> Iterator[Check]:
    """The tap0/* arrays of the first image, vision_out and projected of all; `pixel_values` (N, 6, size, size)."""
    backbone = model.vision_backbone
    towers = (("dino", backbone.featurizer, slice(0, 3)), ("siglip", backbone.fused_featurizer, slice(3, 6)))
    for name, tower, channels in towers:
        yield from _compare_tower(name, tower, fixture, pixel_values[:1, channels])
    if arrays := fixture.find("vision_out"):
        features = backbone(pixel_values[: len(arrays[0])])
        yield close("vision_out", [(features.cpu(), arrays[0])], STATE, scaled=True)
        if arrays := fixture.find("projected", "vision_out"):
            alone = model.projector(torch.from_numpy(arrays[1]).to(features))
            pairs = [(model.projector(features).cpu(), arrays[0]), (alone.cpu(), arrays[0])]
            yield close("projected", pairs, STATE, scaled=True)


def _compare_tower(name: str, tower: VisionTower, fixture: Fixture, image: Tensor) -> Iterator[Check]:
    """Each step as the image gives it, and by itself from what the step before gave the original.

    The last block, which the features never pass through, is compared too: its weights are in the checkpoint.
    """
    state = tower.patch_embed(image)
    if arrays := fixture.find(f"tap0/{name}_patch_embed"):
        yield close(f"tap0/{name}_patch_embed", [(state.cpu(), arrays[0])], STATE, scaled=True)
    state, before = _embedded(tower, image), None
    if arrays := fixture.find(f"tap0/{name}_embed"):
        before = arrays[0]
        yield close(f"tap0/{name}_embed", [(state.cpu(), before)], STATE, scaled=True)
    for index, block in enumerate(tower.blocks):
        state = block(state)
        arrays = fixture.find(f"tap0/{name}_block{index}")
        if arrays:
            pairs = [(state.cpu(), arrays[0])]
            if before is not None:
                pairs.append((block(torch.from_numpy(before).to(state)).cpu(), arrays[0]))
            yield close(f"tap0/{name}_block{index}", pairs, STATE, scaled=True)
        before = arrays[0] if arrays else None


def _embedded(tower: VisionTower, image: Tensor) -> Tensor:
    """What enters the first block: patches and positions, behind the class and register tokens."""
    entered: list[Tensor] = []
    watch = tower.blocks[0].register_forward_pre_hook(lambda _, inputs: entered.append(inputs[0]))
    try:
        tower(image)
    finally:
        watch.remove()
    return entered[0]
