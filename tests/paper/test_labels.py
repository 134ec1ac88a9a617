"""Labels of points: none on another, none on a point, as far as there is room."""

from itertools import combinations

from matplotlib.figure import Figure

from stages.paper.labels import label_points


def test_labels_of_a_crowd_hide_neither_each_other_nor_a_point() -> None:
    figure = Figure(figsize=(5, 4))
    axis = figure.subplots()
    points = [(0.0, 0.0), (0.01, 0.02), (0.05, -0.03), (0.3, -0.2), (10.0, 8.0)]
    axis.scatter(*zip(*points, strict=True))
    axis.margins(0.2)
    label_points(axis, {at: f"label {index}" for index, at in enumerate(points)})
    figure.draw_without_rendering()
    boxes = {label.get_text(): label.get_window_extent() for label in axis.texts}
    assert set(boxes) == {f"label {index}" for index in range(5)}
    # Of an annotation with a line the box holds the line too, which may pass others; its text alone may not.
    texts = [super(type(label), label).get_window_extent() for label in axis.texts]
    assert not any(a.overlaps(b) for a, b in combinations(texts, 2))
    pixels = axis.transData.transform(points)
    assert not any(text.count_contains(pixels) for text in texts)
    assert axis.get_xlim() == (-2.0, 12.0)
