import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tgrpo_cli.options import require_folder

if TYPE_CHECKING:
    from stages.compare import Comparison


def command(
    of: Annotated[
        list[Path],
        typer.Argument(
            metavar="A B [A B]...",
            help="Evaluations or checkpoints in twos, the baseline first; a run of `tgrpo train` stands for before and after.",
        ),
    ],
    json_: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Also write the figures here.")] = None,
) -> None:
    """Compare two policies on the same episodes: the paired table, its difference with an interval, and McNemar's p.

    Several pairs, such as tasks or training seeds, are also pooled, and averaged over tasks. For a checkpoint, its newest
    evaluation that pairs is looked up under data/.

    Example:

        tgrpo compare data/embedded/openvla-tiny/libero_object/6 data/runs/0001/checkpoints/014
    """
    import json

    from stages.compare import compare
    from stages.evaluations import resolve
    from stages.store.artifacts import write_json

    require_folder(json_)
    comparisons = [compare(pairs) for pairs in resolve(of).values()]
    if json_:
        write_json(json_, [comparison.to_json() for comparison in comparisons])
    for number, comparison in enumerate(comparisons):
        if sys.stdout.isatty():
            print("\n" * bool(number) + "\n".join(lines(comparison)))
            continue
        shared = {"kind": "comparison", "temperature": comparison.temperature, "starts": comparison.starts}
        for row in comparison.to_json()["rows"]:
            print(json.dumps({**shared, "of": "pair", **row}))
        if len(comparison.rows) > 1:
            for row in comparison.to_json()["tasks"]:
                print(json.dumps({**shared, "of": "task", **row}))
            print(json.dumps({**shared, "of": "all", **comparison.to_json()["pooled"]}))
            print(json.dumps({**shared, "of": "mean over tasks", **comparison.to_json()["mean"]}))


def lines(comparison: "Comparison") -> list[str]:
    """The comparison as a table for a terminal."""
    from stages.inspect import table

    several = len(comparison.rows) > 1
    acting = "greedy" if comparison.temperature == 0 else f"sampled at temperature {comparison.temperature:g}"
    shown = [(f"{number}:" if several else "", row) for number, row in enumerate(comparison.rows, start=1)]
    text = [f"{acting}, {comparison.starts} start states"]
    text += [f"{number} A {row.a}, B {row.b}".strip() for number, row in shown]
    header = ("", "task", "A", "B", "both", "A only", "B only", "neither", "B - A (95%)", "p", "p by state")
    if several:
        if len(comparison.tasks) < len(comparison.rows):
            shown += [("task:", row) for row in comparison.tasks]
        shown += [("all:", comparison.pooled)]
    rows = [
        (
            number,
            row.task,
            f"{row.both + row.only_a}/{row.pairs} {row.rate_a:.0%}",
            f"{row.both + row.only_b}/{row.pairs} {row.rate_b:.0%}",
            row.both,
            row.only_a,
            row.only_b,
            row.neither,
            f"{100 * row.difference:+.0f} ({100 * row.low:+.0f} to {100 * row.high:+.0f})",
            f"{row.p:.2g}",
            f"{row.p_states:.2g}",
        )
        for number, row in shown
    ]
    text += ["", *table(header, rows), ""]
    mean = comparison.mean
    if mean.tasks > 1:
        text.append(
            f"mean over {mean.tasks} tasks: {mean.rate_a:.1%} and {mean.rate_b:.1%}, B - A {100 * mean.difference:+.1f} points"
        )
    if comparison.pooled.crashed:
        text.append(
            f"left out, because the simulator crashed in one of the two episodes: {comparison.pooled.crashed} pairs"
        )
    text.append(
        "B - A in points with Newcombe's paired interval; p: exact McNemar over pairs, and sign test over start states"
    )
    return text
