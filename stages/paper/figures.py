"""The figures, as PNG files of a few dozen kilobytes. Each draws what has run and says what has not by leaving it out."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from stages.paper.labels import label_points
from stages.paper.numbers import OBJECT_MEANS, TABLE_3, TASK_10
from stages.paper.results import HISTORY, STILLS, read_rows
from stages.paper.statistics import Rate, base_rate, trained_rate
from stages.paper.tables import BASE, Status, counted, reported, results_of, task_title
from stages.paper.targets import Variant
from stages.paper.weights import Pair, dendrogram_links, pca

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 100
SMOOTH = 3  # iterations on either side of the one that a curve shows


def _figure(width: float, height: float) -> "Figure":
    # The object interface needs no display and leaves matplotlib's global state alone.
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _save(figure: "Figure", out: Path) -> None:
    """Writes the figure in 256 colours, which keeps it small and nobody sees."""
    import io

    from PIL import Image

    data = io.BytesIO()
    figure.savefig(data, dpi=DPI, format="png")
    Image.open(data).convert("RGB").quantize(256).save(out, optimize=True)


def draw_bars(statuses: Sequence[Status], variants: Sequence[Variant], tasks: Sequence[str], out: Path) -> bool:
    """Greedy success of each method on each task with its Wilson interval; the paper's as a black dash. False: nothing ran."""
    everything = results_of(statuses)
    shown = [task for task in tasks if base_rate(everything, task, 0.0)]
    if not shown:
        return False
    names = [(BASE, "SFT (the base)"), *((variant.name, variant.title) for variant in variants)]
    figure = _figure(max(6.0, 1.6 * len(shown) + 2), 4.2)
    axis = figure.subplots()
    width = 0.8 / len(names)
    for column, (name, title) in enumerate(names):
        at = [place - 0.4 + width * (column + 0.5) for place in range(len(shown))]
        rates = [
            base_rate(everything, task, 0.0) if name == BASE else trained_rate(results_of(statuses, name), task, 0.0)
            for task in shown
        ]
        _bars(axis, at, rates, width * 0.92, title, f"C{column}")
        theirs = [reported(name, task) for task in shown]
        marks = [(x, one.rate) for x, one in zip(at, theirs, strict=True) if one]
        axis.scatter([x for x, _ in marks], [y for _, y in marks], marker="_", color="black", s=90, zorder=3)
    axis.scatter([], [], marker="_", color="black", label="the paper")
    axis.set_xticks(range(len(shown)), [f"task {task_title(task)}" for task in shown], fontsize=8)
    axis.set_ylim(0, 1.02)
    axis.set_ylabel("greedy success, 95% Wilson interval")
    means = ", ".join(f"{title} {OBJECT_MEANS[name].rate:.1%}" for name, title in names if name in OBJECT_MEANS)
    axis.set_title(f"documents' means of ten tasks: {means}", fontsize=8)
    axis.legend(fontsize=7, ncols=4, loc="lower center", bbox_to_anchor=(0.5, -0.28))
    axis.grid(axis="y", alpha=0.3)
    _save(figure, out)
    return True


def _bars(
    axis: "Axes", at: Sequence[float], rates: Sequence[Rate | None], width: float, label: str, color: str
) -> None:
    known = [(x, rate) for x, rate in zip(at, rates, strict=True) if rate is not None]
    spread = np.array([[rate.rate - rate.low, rate.high - rate.rate] for _, rate in known]).reshape(-1, 2).T
    heights = [rate.rate for _, rate in known]
    axis.bar([x for x, _ in known], heights, width, yerr=spread if known else None, color=color, label=label, capsize=2)


def draw_histories(
    statuses: Sequence[Status], variants: Sequence[Variant], columns: Sequence[tuple[str, str]], root: Path, out: Path
) -> bool:
    """Columns of the histories over the iterations: thin lines the runs, a thick one their mean. False: nothing ran.

    The thick line is a running mean as well: an iteration samples few trajectories, from other start states than the last.
    """
    figure = _figure(5.5 * len(columns) + 1.5, 4.2)
    axes = figure.subplots(1, len(columns), squeeze=False)[0]
    drawn = False
    for index, variant in enumerate(variants):
        results = results_of(statuses, variant.name)
        histories = [read_rows(root / "cells" / result.name / HISTORY) for result in results]
        histories = [rows for rows in histories if rows]
        for axis, (column, title) in zip(axes, columns, strict=True):
            for rows in histories:
                axis.plot(
                    _iterations(rows), [row[column] for row in rows], color=f"C{index}", alpha=0.25, linewidth=0.8
                )
            if histories:
                drawn = True
                shortest = min(len(rows) for rows in histories)
                mean = np.mean([[row[column] for row in rows[:shortest]] for rows in histories], axis=0)
                label = f"{variant.title} ({counted(len(histories), 'run')})"
                smooth = _running_mean(mean)
                axis.plot(_iterations(histories[0])[:shortest], smooth, color=f"C{index}", linewidth=1.8, label=label)
            axis.set_title(title, fontsize=9)
            axis.set_xlabel(f"iteration (thick: mean of the {2 * SMOOTH + 1} around it)")
            axis.grid(alpha=0.3)
    if drawn:
        figure.legend(*axes[0].get_legend_handles_labels(), fontsize=7, loc="outside right upper")
        _save(figure, out)
    return drawn


def _running_mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of each value with the `SMOOTH` on either side, as far as there are so many."""
    return np.array([values[max(0, i - SMOOTH) : i + SMOOTH + 1].mean() for i in range(len(values))])


def _iterations(rows: Sequence[dict[str, float]]) -> list[float]:
    return [row["iteration"] for row in rows]


def draw_stills_of(statuses: Sequence[Status], tasks: Sequence[str], root: Path, out: Path) -> list[str]:
    """One row of stills for each task that has a success; returns these tasks."""
    from PIL import Image

    found: dict[str, tuple[Path, int]] = {}
    for result in results_of(statuses):
        path = root / "cells" / result.name / STILLS
        if path.exists():
            found.setdefault(result.task, (path, result.seed))
    shown = [task for task in tasks if task in found]
    if not shown:
        return []
    strips = [np.asarray(Image.open(found[task][0]).convert("RGB")) for task in shown]
    height, width = strips[0].shape[:2]
    figure = _figure(width / DPI + 0.2, (height / DPI + 0.3) * len(shown))
    for axis, task, strip in zip(figure.subplots(len(shown), 1, squeeze=False)[:, 0], shown, strips, strict=True):
        axis.imshow(strip)
        axis.set_title(f"task {task_title(task)}, seed {found[task][1]}", fontsize=8, pad=2)
        axis.axis("off")
    _save(figure, out)
    return shown


def draw_pairs(statuses: Sequence[Status], variants: Sequence[Variant], tasks: Sequence[str], out: Path) -> None:
    """PCA and dendrogram of table 3's pairs, and below of the pairs that have run, coloured by our success."""
    grid = [
        (pair, rate.rate)
        for pair, variant in zip(TASK_10, variants, strict=True)
        if (rate := _mean_rate(statuses, variant, tasks))
    ]
    rows = 2 if len(grid) >= 3 else 1
    figure = _figure(10, 4.2 * rows)
    axes = np.asarray(figure.subplots(rows, 2, squeeze=False))
    _draw_analysis(axes[0], TABLE_3, [f"task {n}" for n in range(1, 11)], None, "table 3")
    if rows == 2:
        pairs, rates = [pair for pair, _ in grid], [rate for _, rate in grid]
        _draw_analysis(axes[1], pairs, [_pair(pair) for pair in pairs], rates, "our runs")
    _save(figure, out)


def _draw_analysis(
    axes: "np.ndarray[Any, Any]",
    pairs: Sequence[Pair],
    labels: Sequence[str],
    rates: Sequence[float] | None,
    title: str,
) -> None:
    from scipy.cluster.hierarchy import dendrogram

    parts = pca(pairs)
    points = axes[0].scatter(*parts.scores.T, c=rates, s=60)
    if rates is not None:
        axes[0].figure.colorbar(points, ax=axes[0], label="greedy success")
    labelled = {}
    for pair in dict.fromkeys(pairs):
        x, y = parts.scores[list(pairs).index(pair)]
        count = sum(other == pair for other in pairs)
        labelled[x, y] = _pair(pair) + (f" x {count}" if count > 1 else "")
    axes[0].margins(0.15)
    label_points(axes[0], labelled)
    axes[0].set_xlabel(f"PC1 ({parts.explained[0]:.0%})")
    axes[0].set_ylabel(f"PC2 ({parts.explained[1]:.0%})")
    axes[0].set_title(f"{title}: PCA of (a1, a2)", fontsize=9)
    axes[0].grid(alpha=0.3)
    names = [
        f"{label} {_pair(pair)}" if label != _pair(pair) else label for label, pair in zip(labels, pairs, strict=True)
    ]
    dendrogram(dendrogram_links(pairs), labels=names, orientation="right", ax=axes[1], leaf_font_size=7)
    axes[1].set_title(f"{title}: Ward's clustering", fontsize=9)


def _pair(pair: Pair) -> str:
    return f"({pair[0]:g}, {pair[1]:g})"


def _mean_rate(statuses: Sequence[Status], variant: Variant, tasks: Sequence[str]) -> Rate | None:
    """Of all runs of a variant, on the first task that it ran on."""
    results = results_of(statuses, variant.name)
    rates = (trained_rate(results, task, 0.0) for task in tasks)
    return next((rate for rate in rates if rate is not None), None)


def draw_surface(statuses: Sequence[Status], variants: Sequence[Variant], task: str, out: Path) -> bool:
    """Greedy success over (log a1, log a2) between the pairs that have run, in 3D and as contours. False: too few."""
    ran = [
        (pair, rate.rate)
        for pair, variant in zip(TASK_10, variants, strict=True)
        if (rate := trained_rate(results_of(statuses, variant.name), task, 0.0))
    ]
    if len(ran) < 4:  # a surface needs a triangulation with an inside
        return False
    x, y = (np.log10([pair[axis] for pair, _ in ran]) for axis in (0, 1))
    z = np.array([rate for _, rate in ran])
    figure = _figure(11, 4.6)
    # From 0 to 1, so that the scatter of equal policies does not look like a landscape.
    solid = figure.add_subplot(1, 2, 1, projection="3d")
    solid.plot_trisurf(x, y, z, cmap="viridis", vmin=0, vmax=1, alpha=0.85)
    solid.set_zlim(0, 1)
    solid.locator_params(axis="both", nbins=5)
    flat = figure.add_subplot(1, 2, 2)
    filled = flat.tricontourf(x, y, z, levels=np.linspace(0, 1, 21), cmap="viridis")
    figure.colorbar(filled, ax=flat, label="greedy success")
    flat.scatter(x, y, c="black", s=12)
    flat.use_sticky_edges = False  # contours would end the axes at the outermost pairs
    flat.margins(0.25, 0.12)
    label_points(
        flat, {at: f"{_pair(pair)} {share:.0%}" for at, (pair, share) in zip(zip(x, y, strict=True), ran, strict=True)}
    )
    for axis in (solid, flat):
        axis.set_xlabel("log10 a1 (of S)")
        axis.set_ylabel("log10 a2 (of T)")
    figure.suptitle(f"task {task_title(task)}: greedy success at {len(ran)} pairs, straight lines between", fontsize=9)
    _save(figure, out)
    return True


def draw_runs(
    statuses: Sequence[Status], variants: Sequence[Variant], temperatures: Sequence[float], out: Path
) -> bool:
    """A line from base to trained for every run. False: nothing ran."""
    if not results_of(statuses):
        return False
    figure = _figure(4.2 * len(variants), 3.8 * len(temperatures))
    axes = figure.subplots(len(temperatures), len(variants), squeeze=False, sharey=True)
    tasks = list(dict.fromkeys(status.cell.task for status in statuses))
    for row, temperature in zip(axes, temperatures, strict=True):
        for axis, variant in zip(row, variants, strict=True):
            for result in results_of(statuses, variant.name):
                ends = result.outcomes(temperature)
                rates = [Rate.of([end]) for end in ends] if ends else []
                known = [rate.rate for rate in rates if rate is not None]
                if len(known) == 2:
                    axis.plot([0, 1], known, marker="o", color=f"C{tasks.index(result.task)}", alpha=0.7)
            for index, task in enumerate(tasks):
                axis.plot([], [], color=f"C{index}", label=f"task {task_title(task)}")
            axis.set_xticks([0, 1], ["base", "trained"])
            axis.set_ylim(-0.02, 1.02)
            axis.set_title(
                f"{variant.title}\n{'greedy' if temperature == 0 else f'temperature {temperature:g}'}", fontsize=8
            )
            axis.grid(alpha=0.3)
    axes[0][0].legend(fontsize=7)
    _save(figure, out)
    return True
