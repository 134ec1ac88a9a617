"""Labels of points: none on another, none on a point, as far as there is room."""

from itertools import combinations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text

from stages.paper.labels import label_points


def distances(axis: Axes, points: list[tuple[float, float]]) -> list[float]:
    """Pixels from each point to the nearest corner of its label."""
    pixels = axis.transData.transform(points)
    corners = {label.get_text(): Text.get_window_extent(label).corners() for label in axis.texts}
    return [float(np.hypot(*(corners[f"label {k}"] - at).T).min()) for k, at in enumerate(pixels)]


def test_labels_of_a_crowd_hide_neither_each_other_nor_a_point() -> None:
    figure = Figure(figsize=(5, 4))
    axis = figure.subplots()
    crowd = [(0.01 * k, 0.02 * (k % 3)) for k in range(8)]
    points = [*crowd, (10.0, 8.0)]
    axis.scatter(*zip(*points, strict=True))
    axis.margins(0.2)
    label_points(axis, {at: f"label {index}" for index, at in enumerate(points)})
    figure.draw_without_rendering()
    assert {label.get_text() for label in axis.texts} == {f"label {index}" for index in range(9)}
    texts = [Text.get_window_extent(label) for label in axis.texts]  # a line to a point may pass others
    assert not any(a.overlaps(b) for a, b in combinations(texts, 2))
    pixels = axis.transData.transform(points)
    assert not any(text.count_contains(pixels) for text in texts)
    alone = next(label for label in axis.texts if label.get_text() == "label 8")
    assert sum(label.arrow_patch is not None for label in axis.texts) >= 3 and alone.arrow_patch is None
    assert all(near < 60 for near in distances(axis, points))
    assert axis.get_xlim() == (-2.0, 12.0)
