import numpy as np
import pytest
import torch

from stages.errors import MismatchError
from stages.policy.images import Normalize

CPU = torch.device("cpu")


def test_each_tower_gets_its_normalisation() -> None:
    image = np.zeros((1, 2, 2, 3), np.uint8)
    image[0, 0, 1] = (255, 51, 0)  # row 0, column 1
    pixels = Normalize(2, CPU)(image)
    assert pixels.shape == (1, 6, 2, 2)
    # DINOv2: (x - mean) / std with x = 1, 0.2, 0. SigLIP: 2 x - 1.
    expected = [
        (1 - 0.484375) / 0.228515625,
        (0.2 - 0.455078125) / 0.2236328125,
        -0.40625 / 0.224609375,
        1.0,
        -0.6,
        -1.0,
    ]
    np.testing.assert_allclose(pixels[0, :, 0, 1].numpy(), expected, atol=1e-6)


@pytest.mark.parametrize(
    "images", [np.zeros((1, 3, 2, 3), np.uint8), np.zeros((1, 2, 2, 3), np.float32), np.zeros((2, 2, 3), np.uint8)]
)
def test_other_shapes_and_types_are_refused(images: np.ndarray) -> None:
    with pytest.raises(MismatchError, match=r"expected \(N, 2, 2, 3\) uint8"):
        Normalize(2, CPU)(images)
