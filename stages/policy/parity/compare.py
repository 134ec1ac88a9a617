"""The whole comparison, in the order in which an error spreads: images, towers, language model, decisions."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from stages.errors import MismatchError
from stages.policy.image_pipeline import PublishedPipeline
from stages.policy.images import PreparedImages
from stages.policy.parity.actions import compare_actions
from stages.policy.parity.checks import Check, Fixture
from stages.policy.parity.decisions import (
    Frames,
    compare_decisions,
    compare_greedy_gap,
    compare_prompts,
    compare_scores,
)
from stages.policy.parity.gradients import compare_gradients
from stages.policy.parity.images import compare_images
from stages.policy.parity.language import compare_language
from stages.policy.parity.vision import compare_vision
from stages.policy.policy import VLAPolicy


def compare(
    policy: VLAPolicy, among_actions: VLAPolicy, fixture: Fixture, images: Fixture, actions: Fixture
) -> Iterator[Check]:
    """Every quantity that the fixtures hold, one check each; what they lack is noted in them.

    Args:
        policy: in float32, choosing among the whole vocabulary ("full"), with the centre crop.
        among_actions: the same model, choosing among the action tokens.
        fixture: the model's arrays.
        images: the image pipeline's arrays, from which the model's images are taken too.
        actions: the action tokenizer's arrays; may hold none.

    Raises:
        MismatchError: a checkpoint without the published image pipeline, or arrays of another shape than its outputs.
    """
    pipeline, codec = policy.transform, policy.codec
    if not isinstance(pipeline, PublishedPipeline):
        raise MismatchError(
            "this checkpoint has image_resize_strategy 'none': its frames go to the towers as they are, so there is no "
            "published code to compare with; name a checkpoint in OpenVLA's published layout"
        )
    yield from compare_images(pipeline, images)
    if actions.arrays:
        yield from compare_actions(codec, actions)
    yield from compare_prompts(policy, fixture, actions)
    pixel_values = _pixel_values(pipeline, images)
    if pixel_values is not None:
        yield from compare_vision(policy.model, fixture, pixel_values)
        yield from compare_language(policy.model, fixture, pixel_values)
        yield from compare_greedy_gap(policy, fixture, pixel_values)
    yield from compare_decisions(policy, codec, fixture, {"": _prepared(images), "_crop": _frames(images)})
    if (prepared := _prepared(images)) is not None:
        yield from compare_scores(policy, among_actions, fixture, prepared)
    if pixel_values is not None:
        yield from compare_gradients(policy.model, fixture, pixel_values[:3])


def _pixel_values(pipeline: PublishedPipeline, images: Fixture) -> Tensor | None:
    """(N, 6, size, size) what the original's towers saw: as stored, or from libero224 where more images of that are."""
    stored, prepared = images.arrays.get("pixel_values"), _prepared(images)
    device = pipeline.mean.device
    if prepared is not None and (stored is None or len(stored) < len(prepared)):
        return pipeline.normalize(prepared.pixels.to(device))
    return None if stored is None else torch.from_numpy(stored).to(device)


def _prepared(images: Fixture) -> PreparedImages | None:
    found = images.find("libero224")
    return PreparedImages(torch.from_numpy(found[0])) if found else None


def _frames(images: Fixture) -> Frames | None:
    """Upright camera frames, for the policy's own pipeline with its crop; else the cropped images."""
    if "raw" in images.arrays:
        return np.ascontiguousarray(images.arrays["raw"][:, ::-1, ::-1])
    found = images.find("libero224_crop")
    return PreparedImages(torch.from_numpy(found[0])) if found else None
