"""From the camera's frame to what the vision towers read.

An `ImageTransform` is chosen by the checkpoint's configuration. `openvla-tiny` sees the simulator's frame at its own
size, so only the normalisation is left; the published 7B pipeline (JPEG, lanczos, centre crop) is another transform
behind this interface.
"""

from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stages.errors import MismatchError
from stages.policy.config import OpenVLAConfig

# DINOv2's ImageNet statistics are rounded to bfloat16, as the published preprocessor applies them; then SigLIP's.
MEAN = (0.484375, 0.455078125, 0.40625, 0.5, 0.5, 0.5)
STD = (0.228515625, 0.2236328125, 0.224609375, 0.5, 0.5, 0.5)


class ImageTransform(Protocol):
    """Upright RGB frames, uint8 (N, H, W, 3) -> pixel_values, float32 (N, 6, size, size), normalised for each tower."""

    def __call__(self, images: NDArray[np.uint8] | Tensor) -> Tensor: ...


class Normalize:
    """The normalisation alone, for frames that already have the model's size."""

    def __init__(self, size: int, device: torch.device) -> None:
        self.size = size
        self.scale = (1.0 / (255.0 * torch.tensor(STD, dtype=torch.float64))).float().to(device)
        self.shift = (
            (-torch.tensor(MEAN, dtype=torch.float64) / torch.tensor(STD, dtype=torch.float64)).float().to(device)
        )

    def __call__(self, images: NDArray[np.uint8] | Tensor) -> Tensor:
        """See `ImageTransform`.

        Raises:
            MismatchError: frames of another shape or dtype.
        """
        frames = torch.as_tensor(images)
        if frames.shape[1:] != (self.size, self.size, 3) or frames.dtype != torch.uint8:
            raise MismatchError(
                f"the policy got images {tuple(frames.shape)} {frames.dtype}; expected "
                f"(N, {self.size}, {self.size}, 3) uint8; set sim.image_size to {self.size}"
            )
        towers = frames.to(self.scale.device).float().repeat(1, 1, 1, 2)
        return torch.addcmul(self.shift, towers, self.scale).permute(0, 3, 1, 2)


def image_transform(config: OpenVLAConfig, device: torch.device) -> ImageTransform:
    """The transform that a checkpoint's configuration asks for."""
    return Normalize(config.image_size, device)
