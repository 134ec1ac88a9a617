"""TensorFlow's two image resamplings, to the last bit, without TensorFlow.

Both are float32 throughout, in TensorFlow's order of operations: the sums are not associative, and a difference of one
rounding can tip a pixel to another level.
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

LANCZOS_RADIUS = np.float32(3.0)
PI = np.float32(math.pi)


@dataclass(frozen=True)
class Spans:
    """For each output pixel of an axis: the first input pixel that counts, and the weights from there on."""

    starts: NDArray[np.int64]  # (size,)
    weights: NDArray[np.float32]  # (size, taps), each row sums to 1; zero beyond the span


@lru_cache
def lanczos3_spans(source: int, size: int) -> Spans:
    """What `tf.image.resize(method="lanczos3", antialias=True)` weighs to get `size` pixels out of `source` > `size`."""
    starts, weights = _lanczos3_spans(source, size, np.float32(source) / np.float32(size))
    used = int(np.flatnonzero(weights.any(axis=0))[-1]) + 1  # TensorFlow's rows are longer, padded with zeros
    return Spans(starts, np.ascontiguousarray(weights[:, :used]))


@numba.njit(cache=True)
def _lanczos3_spans(source: Any, size: Any, step: Any) -> Any:
    taps = 2 * math.ceil(LANCZOS_RADIUS * step) + 1
    starts = np.zeros(size, np.int64)
    weights = np.zeros((size, taps), np.float32)
    shrink = np.float32(1.0) / step
    half = np.float32(0.5)
    for x in range(size):
        centre = (np.float32(x) + half) * step
        first = min(max(math.ceil(centre - LANCZOS_RADIUS * step - half), 0), source - 1)
        last = min(max(math.floor(centre + LANCZOS_RADIUS * step - half), 0), source - 1)
        starts[x] = first
        total = np.float32(0.0)
        for i in range(first, last + 1):
            # In single precision, the sine too: numba takes the C library's sinf, as TensorFlow does.
            distance = abs((np.float32(i) + half - centre) * shrink)
            weight = np.float32(0.0)
            if distance <= np.float32(1e-3):
                weight = np.float32(1.0)
            elif distance <= LANCZOS_RADIUS:
                angle = PI * distance
                waves = LANCZOS_RADIUS * np.float32(math.sin(angle)) * np.float32(math.sin(angle / LANCZOS_RADIUS))
                weight = waves / (PI * PI * distance * distance)
            weights[x, i - first] = weight
            total += weight
        scale = np.float32(1.0) / total
        for j in range(last - first + 1):
            weights[x, j] *= scale
    return starts, weights


def resize_lanczos3(image: NDArray[np.uint8], size: int) -> NDArray[np.float32]:
    """(H, W, 3) -> (size, size, 3), antialiased, not rounded and not clipped; H and W are larger than `size`."""
    height, width, _ = image.shape
    rows, columns = lanczos3_spans(height, size), lanczos3_spans(width, size)
    lines = _gather_rows(image.reshape(height, width * 3), rows.starts, rows.weights)
    return _gather_columns(lines, columns.starts, columns.weights)


@numba.njit(cache=True, nogil=True)
def _gather_rows(image: Any, starts: Any, weights: Any) -> Any:
    """(H, W * 3) -> (size, W * 3)."""
    out = np.zeros((len(starts), image.shape[1]), np.float32)
    for y in range(len(starts)):
        line = out[y]
        for j in range(min(weights.shape[1], len(image) - starts[y])):
            source, weight = image[starts[y] + j], weights[y, j]
            for i in range(len(line)):
                line[i] += weight * np.float32(source[i])
    return out


@numba.njit(cache=True, nogil=True)
def _gather_columns(lines: Any, starts: Any, weights: Any) -> Any:
    """(size, W * 3) -> (size, size, 3)."""
    out = np.empty((len(lines), len(starts), 3), np.float32)
    width = lines.shape[1] // 3
    for y in range(len(lines)):
        line = lines[y]
        for x in range(len(starts)):
            red = green = blue = np.float32(0.0)
            for j in range(min(weights.shape[1], width - starts[x])):
                weight, i = weights[x, j], 3 * (starts[x] + j)
                red += weight * line[i]
                green += weight * line[i + 1]
                blue += weight * line[i + 2]
            out[y, x, 0] = red
            out[y, x, 1] = green
            out[y, x, 2] = blue
    return out


@numba.njit(cache=True, nogil=True)
def _round(values: Any) -> Any:
    out = np.empty(len(values), np.uint8)
    for i in range(len(values)):
        out[i] = np.uint8(min(max(np.rint(values[i]), np.float32(0.0)), np.float32(255.0)))
    return out


def round_to_uint8(image: NDArray[np.float32]) -> NDArray[np.uint8]:
    """To levels 0 to 255, halves to even, as tf.round, tf.clip_by_value and tf.cast."""
    return _round(image.reshape(-1)).reshape(image.shape)


def crop_and_resize(image: NDArray[np.uint8], area: float) -> NDArray[np.float32]:
    """The central part of that area of a square image, bilinear to the image's own size, in [0, 1]: (S, S, 3) -> (S, S, 3).

    As `tf.image.crop_and_resize` after `tf.image.convert_image_dtype(image, tf.float32)`.
    """
    low, high, share = _crop_grid(len(image), area)
    return _bilinear(image, low, high, share)


@lru_cache
def _crop_grid(size: int, area: float) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """For each output pixel of an axis: the two input pixels beside it, and the share of the second."""
    one, last = np.float32(1.0), np.float32(size - 1)
    side = np.sqrt(np.float32(area))
    start = (one - side) / np.float32(2.0)
    step = (start + side - start) * last / last
    position = start * last + np.arange(size, dtype=np.float32) * step
    low = np.floor(position)
    return low.astype(np.int64), np.ceil(position).astype(np.int64), position - low


@numba.njit(cache=True, nogil=True)
def _bilinear(image: Any, low: Any, high: Any, share: Any) -> Any:
    unit = np.float32(1.0 / 255.0)
    out = np.empty(image.shape, np.float32)
    for y in range(len(low)):
        for x in range(len(low)):
            for c in range(3):
                top_left = np.float32(image[low[y], low[x], c]) * unit
                top_right = np.float32(image[low[y], high[x], c]) * unit
                bottom_left = np.float32(image[high[y], low[x], c]) * unit
                bottom_right = np.float32(image[high[y], high[x], c]) * unit
                top = top_left + (top_right - top_left) * share[x]
                bottom = bottom_left + (bottom_right - bottom_left) * share[x]
                out[y, x, c] = top + (bottom - top) * share[y]
    return out


@numba.njit(cache=True, nogil=True)
def _scale(values: Any) -> Any:
    out = np.empty(len(values), np.uint8)
    for i in range(len(values)):
        level = min(max(values[i], np.float32(0.0)), np.float32(1.0)) * np.float32(255.5)
        out[i] = np.uint8(min(level, np.float32(255.0)))
    return out


def scale_to_uint8(image: NDArray[np.float32]) -> NDArray[np.uint8]:
    """[0, 1] to levels, 255.5 x cut off, as tf.image.convert_image_dtype(image, tf.uint8, saturate=True)."""
    return _scale(image.reshape(-1)).reshape(image.shape)
