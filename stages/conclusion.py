"""The result of a run of `tgrpo train`: summary.json, summary.md, curve.png, the CSV files and the manifest.

Before and after are compared on the same states and sampling seeds, with Wilson's intervals and the exact McNemar test, so
that nobody reads noise as a gain.
"""

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from stages.compare import Row, compare
from stages.describe import describe
from stages.evaluate import rate_line
from stages.guard import TROUBLE, Ending
from stages.history import HISTORY, read_history, write_history
from stages.pictures import plot_history
from stages.run_folder import Run
from stages.store.artifacts import write_json, write_text
from stages.store.handles import Handle
from stages.store.provenance import Manifest, reference, write_manifest
from stages.workspace import read_checkpoint

VALIDATION = "validation.csv"
SIGNIFICANT = 0.05


def conclude(run: Run, ending: Ending, chosen: int, before: Sequence[Path], after: Sequence[Path]) -> Handle:
    """Writes the result of a run that has ended.

    Args:
        chosen: the iteration of the checkpoint that was evaluated after training, 0 for the start.
        before, after: evaluation folders, one for each of `train.eval_temperatures`.
    """
    history = read_history(run.checkpoint(run.done()))
    offset = read_checkpoint(run.start).details["iteration"]  # of the run's iterations on the history's axis
    validations = [v for k in range(run.done() + 1) if (v := run.read_validation(k))]
    of_before, of_after = ([read_summary(folder) for folder in folders] for folders in (before, after))
    rows = [compare([pair]).pooled for pair in zip(before, after, strict=True)]
    if history:
        write_history(run.folder / HISTORY, history)
    write_text(run.folder / VALIDATION, _validation_csv(validations, offset))
    plot_history(
        run.folder / "curve.png",
        history,
        [{**v, "iteration": offset + v["iteration"]} for v in validations],
        of_before,
        of_after,
        start=offset,
        chosen=offset + chosen,
    )
    result = {"ending": asdict(ending), "kept": chosen, "task": run.params.task, "algo": run.params.update.algo}
    write_json(
        run.folder / "summary.json",
        {
            **result,
            "seed": run.params.seed,
            "iterations": run.done(),
            "before": of_before,
            "after": of_after,
            "comparison": [asdict(row) | {"a": None, "b": None} for row in rows],
            "validations": validations,
        },
    )
    write_text(run.folder / "summary.md", report(run, ending, chosen, of_before, of_after, rows))
    write_manifest(
        run.folder,
        Manifest(
            kind="train",
            params=run.params.model_dump(exclude={"loop"}),
            seed=run.params.seed,
            inputs={
                "start": reference(run.start, run.folder),
                "end": reference(run.checkpoint(chosen), run.folder),
            },
            details=result,
        ),
    )
    return describe(run.folder)


def ending_line(run: Run, ending: Ending, chosen: int) -> str:
    """How the run ended and what is evaluated, in one line."""
    what = "stopped by the guard" if ending.kind in TROUBLE else ending.kind
    name = f" ({ending.kind})" if ending.kind in TROUBLE else ""
    return (
        f"{what}{name} after {ending.iteration} of {run.last} iterations: {ending.why}; evaluating "
        f"{_checkpoint(run, chosen)}, {_choice(run, ending, chosen)}"
    )


def report(
    run: Run,
    ending: Ending,
    chosen: int,
    before: Sequence[dict[str, Any]],
    after: Sequence[dict[str, Any]],
    rows: Sequence[Row],
) -> str:
    """The run's result as Markdown."""
    p = run.params
    starts = {
        "official": "official initial states, which neither training nor the choice of the checkpoint has seen",
        "validation": "validation states, by which the checkpoint was chosen: the rate after training is too high",
    }[p.eval.starts]
    over_states = any(row.states != row.pairs for row in rows)
    header = ["acting", "before", "after", "difference", "gained, lost", "McNemar p", "beyond chance"]
    table = [
        [
            acting(b["temperature"]),
            rate_line(b),
            rate_line(a),
            f"{100 * row.difference:+.0f} points (95% interval {100 * row.low:+.0f} to {100 * row.high:+.0f})",
            f"{row.only_b}, {row.only_a}",
            f"{row.p:.2g}" + (f" ({row.p_states:.2g} over states)" if over_states else ""),
            "yes" if row.p < SIGNIFICANT else "no",
        ]
        for b, a, row in zip(before, after, rows, strict=True)
    ]
    lines = [header, ["---"] * len(header), *table]
    return "\n".join(
        [
            f"# {p.task}, {p.update.algo}, seed {p.seed}: {ending.kind} after {ending.iteration} of {run.last} iterations",
            "",
            f"Why it ended: {ending.why}.",
            "",
            f"Evaluated after training: {_checkpoint(run, chosen)}, {_choice(run, ending, chosen)}.",
            "",
            f"Success on {rows[0].states} {starts}.",
            "",
            *("| " + " | ".join(line) + " |" for line in lines),
            "",
            "Gained and lost: episodes that only the policy after, or only the one before, brought to success, on the same",
            f"states and sampling seeds. Beyond chance: p < {SIGNIFICANT:g} for these two policies; other training seeds may do",
            "otherwise.",
            "",
        ]
    )


def read_summary(evaluation: Path) -> dict[str, Any]:
    """The summary of an evaluation folder."""
    found: dict[str, Any] = json.loads((evaluation / "summary.json").read_text())
    return found


def acting(temperature: float) -> str:
    """How a policy chose its actions, in words."""
    return "greedy" if temperature == 0 else f"sampled at temperature {temperature:g}"


def _checkpoint(run: Run, chosen: int) -> str:
    return f"the checkpoint of iteration {chosen}" if chosen else "the checkpoint that training started from"


def _choice(run: Run, ending: Ending, chosen: int) -> str:
    """Why this checkpoint."""
    validations = [v for v in run.validations() if v.iteration <= ending.last_good]
    keep = run.params.train.keep
    if keep != "last" and validations:
        found = ", ".join(f"{v} after {v.iteration}" for v in validations)
        best = "the best" if keep == "best" else "the latest within a standard error of the best"
        return f"{best} on validation states ({found})"
    return "the last before that" if ending.kind in TROUBLE else "the last"


def _validation_csv(validations: Sequence[dict[str, Any]], offset: int) -> str:
    """A line for each validation: the iteration as in history.csv, the success rate, its interval and the mean return."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["iteration", "success", "low", "high", "return"])
    for v in validations:
        writer.writerow([offset + v["iteration"], v["success_rate"], v["low"], v["high"], v["mean_return"]])
    return text.getvalue()
