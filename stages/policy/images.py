"""From the camera's frame to what the vision towers read.

Two steps: `prepare` is done once for each frame, on the CPU (what resizing and compression leave of it); `normalize` is a
few operations a pixel, on the model's device. An `ImageTransform` is chosen by the checkpoint's configuration.
`openvla-tiny` sees the simulator's frame at its own size, so only the normalisation is left; published checkpoints have
the pipeline of `image_pipeline.py`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stages.errors import ArtifactError, MismatchError
from stages.policy.config import OpenVLAConfig

# DINOv2's ImageNet statistics are rounded to bfloat16, as the published preprocessor applies them; then SigLIP's.
MEAN = (0.484375, 0.455078125, 0.40625, 0.5, 0.5, 0.5)
STD = (0.228515625, 0.2236328125, 0.224609375, 0.5, 0.5, 0.5)

Towers = Sequence[Sequence[float]]  # three channels for each tower


@dataclass(frozen=True)
class PreparedImages:
    """Frames as the towers see them, before normalisation."""

    pixels: Tensor  # (N, size, size, 3) uint8, on the CPU

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, rows: NDArray[np.int64] | slice) -> "PreparedImages":
        return PreparedImages(self.pixels[torch.from_numpy(rows) if isinstance(rows, np.ndarray) else rows])


class ImageTransform(Protocol):
    """Upright RGB frames of the camera -> pixel values, normalised for each tower."""

    input_size: int  # side of the frames, pixels
    size: int  # side of what the towers read, pixels

    def prepare(self, images: NDArray[np.uint8] | Tensor) -> PreparedImages:
        """(N, input_size, input_size, 3) uint8 -> the same frames as the towers see them.

        Raises:
            MismatchError: frames of another shape or dtype.
        """
        ...

    def normalize(self, pixels: Tensor) -> Tensor:
        """(N, size, size, 3) uint8 on any device -> (N, 6, size, size) float32 there: DINOv2's channels, then SigLIP's."""
        ...


class Normalize:
    """The normalisation alone, for frames that already have the model's size."""

    def __init__(self, size: int, device: torch.device) -> None:
        self.input_size = self.size = size
        self.scale = (1.0 / (255.0 * torch.tensor(STD, dtype=torch.float64))).float().to(device)
        self.shift = (
            (-torch.tensor(MEAN, dtype=torch.float64) / torch.tensor(STD, dtype=torch.float64)).float().to(device)
        )

    def prepare(self, images: NDArray[np.uint8] | Tensor) -> PreparedImages:
        """See `ImageTransform`."""
        frames = torch.as_tensor(images)
        if frames.shape[1:] != (self.size, self.size, 3) or frames.dtype != torch.uint8:
            raise MismatchError(
                f"the policy got images {tuple(frames.shape)} {frames.dtype}; expected "
                f"(N, {self.size}, {self.size}, 3) uint8; set sim.image_size to {self.size}"
            )
        return PreparedImages(frames)

    def normalize(self, pixels: Tensor) -> Tensor:
        """See `ImageTransform`."""
        frames = channels_first(pixels).float().unsqueeze(1)
        shift, scale = (values.view(2, 3, 1, 1) for values in (self.shift, self.scale))
        return torch.addcmul(shift, frames, scale).flatten(1, 2)  # both towers' at once, without a copy of the frames


def channels_first(pixels: Tensor) -> Tensor:
    """(N, H, W, 3) -> (N, 3, H, W), moved while a value is one byte: what follows then runs along memory."""
    return pixels.permute(0, 3, 1, 2).contiguous()


def image_transform(config: OpenVLAConfig, center_crop: bool, device: torch.device) -> ImageTransform:
    """The transform that a checkpoint's configuration asks for; `center_crop` concerns the published pipeline alone.

    Raises:
        ArtifactError: an image_resize_strategy other than the published one and openvla-tiny's.
    """
    if config.image_resize_strategy == "none":
        return Normalize(config.image_size, device)
    if config.image_resize_strategy != "resize-naive":
        raise ArtifactError(
            f"config.json: image_resize_strategy is {config.image_resize_strategy!r}; expected 'resize-naive' (as published) "
            "or 'none' (openvla-tiny); name a checkpoint that was trained with one of them"
        )
    from stages.policy.image_pipeline import PublishedPipeline  # loads numba, which openvla-tiny does without

    mean: Towers = (MEAN[:3], MEAN[3:])
    std: Towers = (STD[:3], STD[3:])
    if config.image_normalization is not None:
        mean, std = config.image_normalization["mean"], config.image_normalization["std"]
    return PublishedPipeline(config.image_size, mean, std, center_crop, device)
