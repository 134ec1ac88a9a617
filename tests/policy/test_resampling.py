"""TensorFlow's resamplings. That they are TensorFlow's to the last bit: test_golden.py."""

import numpy as np
import pytest

from stages.policy.resampling import (
    crop_and_resize,
    lanczos3_spans,
    resize_lanczos3,
    round_to_uint8,
    scale_to_uint8,
)


@pytest.mark.parametrize(("source", "size"), [(256, 224), (224, 16), (10, 3)])
def test_weights_are_lanczos_of_the_distance_in_output_pixels(source: int, size: int) -> None:
    spans, step = lanczos3_spans(source, size), source / size
    np.testing.assert_allclose(spans.weights.sum(1), 1.0, atol=1e-6)
    for x in range(size):
        distance = (np.arange(source) + 0.5 - (x + 0.5) * step) / step
        exact = np.where(np.abs(distance) <= 3, np.sinc(distance) * np.sinc(distance / 3), 0.0)
        got = np.zeros(source + spans.weights.shape[1])
        got[spans.starts[x] : spans.starts[x] + spans.weights.shape[1]] = spans.weights[x]
        np.testing.assert_allclose(got[:source], exact / exact.sum(), atol=5e-5)  # float32 at 256


def test_both_axes_and_all_channels_are_resized_alike() -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (20, 28, 3), dtype=np.uint8)
    rows, columns = lanczos3_spans(20, 7), lanczos3_spans(28, 7)
    got = resize_lanczos3(image, 7)
    for y, x, c in ((0, 0, 0), (6, 6, 2), (3, 0, 1), (0, 5, 2)):
        down = slice(rows.starts[y], rows.starts[y] + rows.weights.shape[1])
        across = slice(columns.starts[x], columns.starts[x] + columns.weights.shape[1])
        part = image[down, across, c].astype(np.float64)
        expected = rows.weights[y, : part.shape[0]] @ part @ columns.weights[x, : part.shape[1]]
        np.testing.assert_allclose(got[y, x, c], expected, rtol=1e-5)


def test_the_crop_spans_the_middle_from_edge_to_edge() -> None:
    """A ramp along each axis shows where each output pixel lies: area 0.25 is the middle half of the pixels' centres."""
    size = 41
    ramp = np.zeros((size, size, 3), np.uint8)
    ramp[..., 0] = 5 * np.arange(size)
    ramp[..., 1] = 5 * np.arange(size)[:, None]
    positions = np.linspace(10, 30, size)
    got = crop_and_resize(ramp, 0.25) * 255 / 5
    np.testing.assert_allclose(got[17, :, 0], positions, atol=1e-4)
    np.testing.assert_allclose(got[:, 17, 1], positions, atol=1e-4)
    assert not got[..., 2].any()


def test_levels_are_rounded_to_even_after_lanczos_and_cut_off_after_the_crop() -> None:
    floats = np.array([-3.0, 0.5, 1.5, 2.49, 254.6, 300.0], np.float32)
    np.testing.assert_array_equal(round_to_uint8(floats), [0, 0, 2, 2, 255, 255])
    levels = np.array([-0.1, 0.0, 0.999 / 255.5, 1.001 / 255.5, 1.0, 1.2], np.float32)
    np.testing.assert_array_equal(scale_to_uint8(levels), [0, 0, 0, 1, 255, 255])
    np.testing.assert_array_equal(scale_to_uint8((np.arange(256) / 255).astype(np.float32)), np.arange(256))
