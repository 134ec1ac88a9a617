"""The two image transforms. That the published one's pixels are the original's to the last bit: test_golden.py."""

import numpy as np
import pytest
import torch

from stages.errors import ArtifactError, MismatchError
from stages.policy.config import OpenVLAConfig
from stages.policy.image_pipeline import PublishedPipeline
from stages.policy.images import Normalize, PreparedImages, image_transform
from tests.policy.golden import REDUCED, arrays

CPU = torch.device("cpu")
FRAME = np.zeros((1, 2, 2, 3), np.uint8)
FRAME[0, 0, 1] = (255, 51, 0)  # row 0, column 1
# DINOv2: (x - mean) / std with x = 1, 0.2, 0. SigLIP: 2 x - 1.
NORMALIZED = [
    (1 - 0.484375) / 0.228515625,
    (0.2 - 0.455078125) / 0.2236328125,
    -0.40625 / 0.224609375,
    1.0,
    -0.6,
    -1.0,
]


def published(center_crop: bool = True, **config: object) -> PublishedPipeline:
    transform = image_transform(OpenVLAConfig(**config), center_crop, CPU)
    assert isinstance(transform, PublishedPipeline)
    return transform


def frames(n: int) -> np.ndarray:
    """Smooth and noisy ones by turns: JPEG treats them differently."""
    rng = np.random.default_rng(0)
    ramp = np.indices((256, 256, 3)).sum(0) // 3
    return np.stack([(ramp + rng.integers(0, 20 * (i % 2) + 1, ramp.shape)).astype(np.uint8) for i in range(n)])


def test_each_tower_gets_its_normalisation() -> None:
    for transform in (Normalize(2, CPU), published()):
        pixels = transform.normalize(torch.from_numpy(FRAME))
        assert pixels.shape == (1, 6, 2, 2) and pixels.dtype == torch.float32
        np.testing.assert_allclose(pixels[0, :, 0, 1].numpy(), NORMALIZED, atol=1e-6)


def test_a_checkpoint_may_have_a_normalisation_of_its_own() -> None:
    own = {"mean": [[0.5, 0.2, 0.0], [0.0, 0.0, 0.0]], "std": [[0.5, 0.1, 1.0], [1.0, 1.0, 2.0]]}
    pixels = published(image_normalization=own).normalize(torch.from_numpy(FRAME))
    np.testing.assert_allclose(pixels[0, :, 0, 1].numpy(), [1.0, 0.0, 0.0, 1.0, 0.2, 0.0], atol=1e-6)


@pytest.mark.parametrize(
    "images", [np.zeros((1, 3, 2, 3), np.uint8), np.zeros((1, 2, 2, 3), np.float32), np.zeros((2, 2, 3), np.uint8)]
)
def test_other_shapes_and_types_are_refused(images: np.ndarray) -> None:
    with pytest.raises(MismatchError, match=r"expected \(N, 2, 2, 3\) uint8"):
        Normalize(2, CPU).prepare(images)


@pytest.mark.parametrize(("shape", "dtype"), [((1, 96, 96, 3), np.uint8), ((1, 256, 256, 3), np.float32)])
def test_the_published_pipeline_starts_from_256_pixels_in_bytes(shape: tuple[int, ...], dtype: type) -> None:
    for images in (np.zeros(shape, dtype), torch.from_numpy(np.zeros(shape, dtype))):
        with pytest.raises(MismatchError, match=r"expected \(N, 256, 256, 3\) uint8.*set sim.image_size to 256"):
            published().prepare(images)


def test_many_frames_are_prepared_as_each_alone_and_in_order() -> None:
    pipeline, images = published(), frames(5)
    together = pipeline.prepare(images).pixels
    assert together.shape == (5, 224, 224, 3)
    for i in range(5):
        torch.testing.assert_close(pipeline.prepare(images[i : i + 1]).pixels[0], together[i], rtol=0, atol=0)
    torch.testing.assert_close(pipeline.prepare(torch.from_numpy(images)).pixels, together, rtol=0, atol=0)
    assert len(pipeline.prepare(images[:0])) == 0


@pytest.mark.parity
def test_the_crop_is_a_choice() -> None:
    golden = arrays(REDUCED, "images")
    upright = golden["raw"][:, ::-1, ::-1]
    for crop, name in ((False, "libero224"), (True, "libero224_crop")):
        np.testing.assert_array_equal(published(crop).prepare(upright).pixels.numpy(), golden[name][: len(upright)])


def test_the_configuration_chooses_the_transform() -> None:
    tiny = OpenVLAConfig(image_resize_strategy="none", image_sizes=[96, 96])
    assert isinstance(image_transform(tiny, True, CPU), Normalize)
    with pytest.raises(ArtifactError, match="'letterbox'; expected 'resize-naive'"):
        image_transform(OpenVLAConfig(image_resize_strategy="letterbox"), True, CPU)


def test_rows_of_prepared_images() -> None:
    images = PreparedImages(torch.arange(4, dtype=torch.uint8).view(4, 1, 1, 1).expand(4, 2, 2, 3))
    assert images[np.array([3, 1])].pixels[:, 0, 0, 0].tolist() == [3, 1]
    assert len(images[1:]) == 3
