"""The published image pipeline: what OpenVLA's LIBERO evaluation does to a camera frame, to the last bit.

JPEG encode and decode (the training data were JPEG), Lanczos to the towers' size, a centre crop (the checkpoints were
trained with random ones), and each tower's normalisation. The original does all this in TensorFlow.
"""

import io
import os
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property

import numpy as np
import simplejpeg
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from stages.errors import MismatchError
from stages.policy.images import PreparedImages, Towers, channels_first
from stages.policy.resampling import crop_and_resize, resize_lanczos3, round_to_uint8, scale_to_uint8

FRAME_SIZE = 256  # of LIBERO's training data; the spans of the resize depend on it
CROP_AREA = 0.9
JPEG_QUALITY = 95
JPEG_DENSITY = (300, 300)  # TensorFlow's; no pixel depends on it, but so the bytes are the same


def encode_jpeg(frame: NDArray[np.uint8]) -> bytes:
    """(H, W, 3) -> the bytes of `tf.image.encode_jpeg`: quality 95, chroma at half the resolution."""
    file = io.BytesIO()
    Image.fromarray(frame).save(file, "JPEG", quality=JPEG_QUALITY, subsampling="4:2:0", dpi=JPEG_DENSITY)
    return file.getvalue()


def decode_jpeg(data: bytes) -> NDArray[np.uint8]:
    """Bytes -> (H, W, 3) as `tf.io.decode_image`: with libjpeg's fast integer DCT, which Pillow's decoder does not use."""
    return simplejpeg.decode_jpeg(data, fastdct=True, fastupsample=False)


class PublishedPipeline:
    """The `ImageTransform` of checkpoints in the published layout: frames of 256 x 256 to towers of `size`."""

    def __init__(
        self,
        size: int,
        mean: Towers,
        std: Towers,
        center_crop: bool,
        device: torch.device,
    ) -> None:
        """`mean` and `std` hold three channels for each tower, in [0, 1]."""
        self.input_size, self.size = FRAME_SIZE, size
        self.center_crop = center_crop
        self.mean = torch.tensor(mean, dtype=torch.float32, device=device).flatten()
        self.std = torch.tensor(std, dtype=torch.float32, device=device).flatten()

    def prepare(self, images: NDArray[np.uint8] | Tensor) -> PreparedImages:
        """See `ImageTransform`. Frames are spread over the cores; their order does not change a bit."""
        frames = images.cpu().numpy() if isinstance(images, Tensor) else images
        if frames.shape[1:] != (FRAME_SIZE, FRAME_SIZE, 3) or frames.dtype != np.uint8:
            raise MismatchError(
                f"the policy got images {frames.shape} {frames.dtype}; expected (N, {FRAME_SIZE}, {FRAME_SIZE}, 3) uint8, "
                f"which OpenVLA's image pipeline starts from; set sim.image_size to {FRAME_SIZE}"
            )
        rows = self._pool.map(self._prepare_one, frames) if len(frames) > 1 else map(self._prepare_one, frames)
        pixels = np.empty((len(frames), self.size, self.size, 3), np.uint8)
        for row, prepared in zip(pixels, rows, strict=True):
            row[:] = prepared
        return PreparedImages(torch.from_numpy(pixels))

    def _prepare_one(self, frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
        small = round_to_uint8(resize_lanczos3(decode_jpeg(encode_jpeg(frame)), self.size))
        return scale_to_uint8(crop_and_resize(small, CROP_AREA)) if self.center_crop else small

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        # All the work is in C or compiled code that lets go of the interpreter's lock.
        return ThreadPoolExecutor(len(os.sched_getaffinity(0)), "prepare")

    def normalize(self, pixels: Tensor) -> Tensor:
        """See `ImageTransform`. In the order of torchvision's to_tensor and normalize, so that no bit differs on a CPU."""
        frames = channels_first(pixels).float() / 255.0
        towers = torch.cat([frames, frames], dim=1)
        return towers.sub_(self.mean[:, None, None]).div_(self.std[:, None, None])
