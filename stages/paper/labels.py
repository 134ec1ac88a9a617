"""Labels of points in a figure that hide neither each other nor the points."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MARGIN = 5  # points of 1/72 inch that a label stays away from the middle of a point
# Where a label may stand about its point, nearest first: offset in points, and alignment.
_PLACES = tuple(
    (dx, up * dy, "left" if dx > 0 else "right", "bottom" if up > 0 else "top")
    for dy in range(3, 60, 8)
    for dx in (6, -6, 14)
    for up in (1, -1)
)


def label_points(axis: "Axes", texts: Mapping[tuple[float, float], str]) -> None:
    """Writes each text beside its point, with a line to it unless that is next to it.

    The limits of the axis stay as they are from now on. A text that fits nowhere hides what it must.
    """
    from matplotlib.text import Text
    from matplotlib.transforms import Bbox

    axis.autoscale_view()
    axis.set_autoscale_on(False)
    figure = axis.get_figure(root=True)
    assert figure is not None
    figure.draw_without_rendering()  # so that extents are known
    pixels = _MARGIN * figure.dpi / 72
    at_pixels = axis.transData.transform(list(texts))
    taken: list[Any] = [Bbox([[x - pixels, y - pixels], [x + pixels, y + pixels]]) for x, y in at_pixels]
    for at, text in sorted(texts.items(), key=lambda item: -item[0][1]):  # from the top, as labels stand
        for place in _PLACES:
            label = _write(axis, at, text, *place)
            label.get_window_extent()  # puts the text in its place, but counts the line, which must reach its point
            box = Text.get_window_extent(label)
            if place == _PLACES[-1] or not any(box.overlaps(other) for other in taken):
                taken.append(box)
                break
            label.remove()


def _write(axis: "Axes", at: tuple[float, float], text: str, dx: float, dy: float, across: str, along: str) -> Any:
    line = {"arrowstyle": "-", "linewidth": 0.5, "shrinkA": 0, "shrinkB": 3} if abs(dx) + abs(dy) > 9 else None
    return axis.annotate(
        text,
        at,
        (dx, dy),
        textcoords="offset points",
        fontsize=7,
        ha=across,
        va=along,
        arrowprops=line,
        annotation_clip=False,
    )
