"""The image pipeline, stage by stage from what the stage before gave the original, and as a whole from the frames."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from stages.policy.image_pipeline import CROP_AREA, PublishedPipeline, decode_jpeg, encode_jpeg
from stages.policy.parity.checks import LANCZOS, PIXEL, Check, Fixture, close, same
from stages.policy.resampling import crop_and_resize, resize_lanczos3, round_to_uint8, scale_to_uint8


def squash(image: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """(H, W, 3) -> (size, size, 3), as the published processor ("resize-naive") resizes what is not yet of its size.

    OpenVLA's own evaluation hands it frames that are; only other callers meet this bicubic step.
    """
    return np.array(Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC))


def compare_images(pipeline: PublishedPipeline, fixture: Fixture) -> Iterator[Check]:
    """Every array of images.npz; `pipeline` belongs to the checkpoint, and so does its normalisation."""
    yield from _compare_jpeg(fixture)
    yield from _compare_resampling(pipeline.size, fixture)
    yield from _compare_pixel_values(pipeline, fixture)
    for name, crop in (("libero224", False), ("libero224_crop", True)):
        if arrays := _rows(fixture, "raw", name):
            whole = PublishedPipeline(pipeline.size, *_normalization(pipeline), crop, torch.device("cpu"))
            frames = np.ascontiguousarray(arrays[0][:, ::-1, ::-1])
            yield same(f"raw -> {name}", [(whole.prepare(frames).pixels, arrays[1])])


def _rows(fixture: Fixture, *names: str) -> list[NDArray[Any]] | None:
    """Arrays cut to the images that all of them hold; large ones may be stored for the first images only."""
    found = fixture.find(*names)
    return [array[: min(map(len, found))] for array in found] if found else None


def _compare_jpeg(fixture: Fixture) -> Iterator[Check]:
    if arrays := _rows(fixture, "raw", "rot180"):
        yield same("rot180", [(arrays[0][:, ::-1, ::-1], arrays[1])])
    if arrays := _rows(fixture, "rot180", "jpeg_bytes", "jpeg_len"):
        frames, stored, lengths = arrays
        written = [np.frombuffer(encode_jpeg(frame), np.uint8) for frame in frames]
        yield same("jpeg_len", [([len(row) for row in written], lengths)])
        yield same("jpeg_bytes", [(_fit(row, len(want)), want) for row, want in zip(written, stored, strict=True)])
    if arrays := _rows(fixture, "jpeg_bytes", "jpeg_len", "jpeg_decoded"):
        rows = zip(*arrays, strict=True)
        yield same("jpeg_decoded", [(decode_jpeg(row[:length].tobytes()), want) for row, length, want in rows])


def _fit(row: NDArray[np.uint8], length: int) -> NDArray[np.uint8]:
    """Filled with zeros, as the stored bytes are, or cut; their number is compared by itself."""
    return np.pad(row[:length], (0, max(0, length - len(row))))


def _compare_resampling(size: int, fixture: Fixture) -> Iterator[Check]:
    if arrays := _rows(fixture, "jpeg_decoded", "lanczos_f32"):
        yield close("lanczos_f32", [(resize_lanczos3(a, size), b) for a, b in zip(*arrays, strict=True)], LANCZOS)
    if arrays := _rows(fixture, "jpeg_decoded", "libero224"):
        pairs = zip(*arrays, strict=True)
        yield same("libero224", [(round_to_uint8(resize_lanczos3(a, size)), b) for a, b in pairs])
    if arrays := _rows(fixture, "libero224", "crop_f32"):
        yield close("crop_f32", [(crop_and_resize(a, CROP_AREA), b) for a, b in zip(*arrays, strict=True)], PIXEL)
    if arrays := _rows(fixture, "libero224", "libero224_crop"):
        pairs = zip(*arrays, strict=True)
        yield same("libero224_crop", [(scale_to_uint8(crop_and_resize(a, CROP_AREA)), b) for a, b in pairs])
    if arrays := _rows(fixture, "raw", "raw_bicubic224"):
        yield same("raw_bicubic224", [(squash(a, size), b) for a, b in zip(*arrays, strict=True)])


def _compare_pixel_values(pipeline: PublishedPipeline, fixture: Fixture) -> Iterator[Check]:
    if arrays := fixture.find("norm_mean_used", "norm_std_used"):
        mean, std = _normalization(pipeline)
        yield close("norm_mean_used, norm_std_used", [(mean, arrays[0]), (std, arrays[1])], PIXEL)
    for source, name in (("libero224", "pixel_values"), ("libero224_crop", "pixel_values_crop")):
        if arrays := _rows(fixture, source, name):
            yield close(name, [(_normalize(pipeline, arrays[0]), arrays[1])], PIXEL)
    if arrays := _rows(fixture, "libero224", "pixel_values_exact_imagenet"):
        frames, want = arrays
        imagenet = (((0.485, 0.456, 0.406), (0.5,) * 3), ((0.229, 0.224, 0.225), (0.5,) * 3))
        exact = PublishedPipeline(pipeline.size, *imagenet, False, torch.device("cpu"))
        yield close("pixel_values_exact_imagenet", [(_normalize(exact, frames), want)], PIXEL)
    if arrays := _rows(fixture, "raw", "pixel_values_raw256"):
        frames, want = arrays
        squashed = np.stack([squash(frame, pipeline.size) for frame in frames])
        yield close("pixel_values_raw256", [(_normalize(pipeline, squashed), want)], PIXEL)
    if arrays := fixture.find("rect200x256", "pixel_values_rect"):
        squashed = squash(arrays[0], pipeline.size)[None]
        yield close("pixel_values_rect", [(_normalize(pipeline, squashed), arrays[1])], PIXEL)


def _normalize(pipeline: PublishedPipeline, frames: NDArray[np.uint8]) -> NDArray[np.float32]:
    return pipeline.normalize(torch.from_numpy(frames).to(pipeline.mean.device)).cpu().numpy()


def _normalization(pipeline: PublishedPipeline) -> tuple[list[list[float]], list[list[float]]]:
    return pipeline.mean.view(2, 3).tolist(), pipeline.std.view(2, 3).tolist()
