"""`tgrpo paper`: runs the cells that a table or figure asks for, as far as they fit, and writes what there is.

    asked cells -> those without a result, in order, each a DVC experiment -> docs/results/PROFILE/NAME.md, .json, .png

Whatever has a result counts and whatever has none is said to have none, so a document can be printed at any time.
"""

import json
import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from stages.errors import TgrpoError
from stages.paper import figures, tables
from stages.paper.cells import Cell, distinct
from stages.paper.experiments import ROOT, run_as_experiment, stored_failure, stored_result
from stages.paper.numbers import BEST_OF, OBJECT_TASKS, PAPER
from stages.paper.records import keep, restore
from stages.paper.results import Result
from stages.paper.statistics import Rate, paired
from stages.paper.tables import Status
from stages.paper.targets import Target, Variant, plan
from stages.reporting import Reporter, Silent
from stages.store.artifacts import write_json, write_text

RESULTS = Path("docs/results")
RunCell = Callable[[Cell, Path], None]


@dataclass(frozen=True)
class Request:
    """What `tgrpo paper` was asked for."""

    target: Target
    profile: Path  # a params file, or the name of one
    tasks: tuple[str, ...] = ()  # none: those that the documents show
    seeds: tuple[int, ...] = (0, 1, 2)
    options: tuple[str, ...] = ()  # section.key=value, for all cells
    run: bool = True  # false: print what is there
    budget_hours: float | None = None  # no cell starts that would probably end later
    max_cells: int | None = None  # most cells that run now

    @property
    def profile_name(self) -> str:
        """`cpu` for params.yaml, else the file's own name."""
        return "cpu" if self.profile.stem == "params" else self.profile.stem

    @property
    def asked_tasks(self) -> tuple[str, ...]:
        return self.tasks or self.target.tasks

    @property
    def command(self) -> str:
        """The command that prints the same document from the same cells."""
        parts = ["tgrpo paper", self.target.name, "--profile", self.profile_name]
        if self.tasks:
            parts += ["--tasks", ",".join(self.tasks)]
        parts += ["--seeds", ",".join(map(str, self.seeds))]
        for option in self.options:
            parts += ["--set", option]
        return " ".join(parts)


def paper(
    request: Request,
    reporter: Reporter | None = None,
    *,
    results: Path = RESULTS,
    root: Path = ROOT,
    run_cell: RunCell = run_as_experiment,
) -> Path:
    """Runs what is missing, as far as it fits, and writes the document; returns the path of its Markdown.

    A cell that fails is noted and the others go on.

    Args:
        results: where documents go, a folder for each profile, and what cells came to, so that a clone has it.
        root: where cells lie.

    Raises:
        ParamsError, TaskError: the profile, an option or a task does not exist.
        TgrpoError: Git or DVC cannot be used.
    """
    reporter = reporter or Silent()
    cells = plan(request.target, request.profile, request.asked_tasks, request.seeds, request.options, root)
    records = results / request.profile_name
    restore((cell for _, cell in cells), records, root)
    if request.run:
        run_missing([cell for _, cell in cells], request, reporter, root, run_cell)
    statuses = [Status(variant, cell, stored_result(cell, root), stored_failure(cell, root)) for variant, cell in cells]
    keep((cell for _, cell in cells), root, records)
    return _write(request, statuses, records, root)


def run_missing(
    cells: Sequence[Cell], request: Request, reporter: Reporter, root: Path, run_cell: RunCell = run_as_experiment
) -> int:
    """Runs the cells that have no result, in order, until the budget or the number asked for is used up; returns how many.

    A cell is not started when, at the mean of those that ran before it, it would end after the budget. The first one
    always starts.
    """
    waiting = [cell for cell in distinct(cells) if stored_result(cell, root) is None]
    reporter.note(f"{request.target.name}: {len(distinct(cells))} cells, {len(waiting)} of them to run")
    took: list[float] = []
    for number, cell in enumerate(waiting):
        spent = sum(took)
        if request.max_cells is not None and number >= request.max_cells:
            reporter.note(f"stopped after {number} cells, as asked; {len(waiting) - number} are left")
            return number
        if request.budget_hours is not None and took and spent + statistics.fmean(took) > 3600 * request.budget_hours:
            reporter.note(
                f"stopped after {number} cells and {spent / 3600:.1f} h: the next would not fit into {request.budget_hours:g} h; "
                f"{len(waiting) - number} are left"
            )
            return number
        left = f", about {statistics.fmean(took) * (len(waiting) - number) / 3600:.1f} h for all" if took else ""
        reporter.note(f"cell {number + 1} of {len(waiting)}: {cell.variant}, {cell.task}, seed {cell.seed}{left}")
        start = time.monotonic()
        run_cell(cell, root)
        took.append(time.monotonic() - start)
        if stored_result(cell, root) is None:
            reporter.note(f"{cell.name} failed: {stored_failure(cell, root)}; the others go on")
    return len(waiting)


def _write(request: Request, statuses: Sequence[Status], folder: Path, root: Path) -> Path:
    """Writes the Markdown, the numbers and the figure of a document, and the index of all documents."""
    folder.mkdir(parents=True, exist_ok=True)
    name = request.target.name
    picture = folder / f"{name}.png"
    picture.unlink(missing_ok=True)
    notes = _draw(request, statuses, root, picture)
    write_json(folder / f"{name}.json", _numbers(request, statuses))
    lines = [
        f"# {request.target.title}",
        "",
        request.target.shows,
        "",
        *_provenance(request, statuses),
        *([f"![{request.target.title}]({picture.name})", ""] if picture.exists() else []),
        *notes,
        *_tables(request, statuses),
        *tables.disagreements(statuses),
        *tables.missing(statuses),
    ]
    write_text(folder / f"{name}.md", "\n".join(lines).rstrip() + "\n")
    _write_index(folder.parent)
    return folder / f"{name}.md"


def _draw(request: Request, statuses: Sequence[Status], root: Path, out: Path) -> list[str]:
    """Draws the target's figure, if it has one and something to draw; returns lines that say what is not in it."""
    variants, tasks = request.target.variants, request.asked_tasks
    match request.target.name:
        case "fig2" | "table1" | "table3" | "groupsize":
            figures.draw_bars(statuses, variants, tasks, out)
        case "fig3":
            figures.draw_histories(statuses, variants, [("success", "success of the sampled trajectories")], root, out)
        case "fig4":
            columns = [
                ("log_prob", "log-probability of action tokens, nats a token"),
                ("entropy", "entropy, nats a token"),
            ]
            figures.draw_histories(statuses, variants, columns, root, out)
        case "fig5":
            shown = figures.draw_stills_of(statuses, tasks, root, out)
            ran = {result.task for result in tables.results_of(statuses)}
            lacking = [task for task in tasks if task not in shown]
            why = {task: "no success to show" if task in ran else tables.NOT_RUN for task in lacking}
            return [*(f"- Task {tables.task_title(task)}: {why[task]}." for task in lacking), ""]
        case "fig6":
            figures.draw_pairs(statuses, variants, tasks, out)
        case "fig7":
            if not figures.draw_surface(statuses, variants, tasks[0], out):
                return ["A surface needs four pairs that have run; fewer have.", ""]
        case "proof":
            figures.draw_runs(statuses, variants, tables.temperatures(statuses), out)
    return []


def _tables(request: Request, statuses: Sequence[Status]) -> list[str]:
    target, tasks = request.target, request.asked_tasks
    variants = target.variants
    grid = tables.grid_table(statuses, variants, tasks) if target.name in ("fig3", "fig6", "fig7") else []
    lines: list[str] = []
    match target.name:
        case "fig6":
            lines += [*tables.claims_table(), *tables.weights_table(OBJECT_TASKS), *grid]
        case "fig3" | "fig7":
            lines += grid
        case "groupsize":
            lines += tables.group_sizes_table(statuses, variants, tasks)
        case "suites":
            lines += tables.suites_table(statuses, tasks)
        case "table3":
            lines += tables.weights_table(tasks)
    if target.name in ("table1", "table3", "fig2", "groupsize", "suites", "proof"):
        for temperature in tables.temperatures(statuses) or [0.0]:  # the documents' numbers stand there before any run
            lines += tables.rates_by_task(statuses, variants, tasks, temperature)
    lines += tables.paired_table(statuses, variants)
    lines += tables.spread_table(statuses, variants)
    if target.name not in ("fig3", "fig5", "fig6", "fig7"):
        lines += tables.methods_table(statuses, variants)
        lines += tables.best_of_table(statuses, variants[0], tasks)
    return [*lines, *tables.runs_table(statuses)]


def headline(request: Request, statuses: Sequence[Status]) -> str:
    """What the document comes to, in one sentence: the first method that has run, greedy, all its runs pooled.

    Where methods are peers, all that have run: to name one of them would be to choose it.
    """
    variants = request.target.variants
    ran = [variant for variant in variants if tables.results_of(statuses, variant.name)]
    if request.target.peers and len(ran) > 1:
        return "greedy successes, before to after: " + "; ".join(_counts(variant, statuses) for variant in ran)
    return _rise(ran[0] if ran else variants[0], statuses)


def _counts(variant: Variant, statuses: Sequence[Status]) -> str:
    pooled = paired(tables.results_of(statuses, variant.name), 0.0)
    if pooled is None:
        return f"{variant.title}: no episode counts"
    before, after = pooled.both + pooled.only_base, pooled.both + pooled.only_trained
    return f"{variant.title}: {before} to {after} of {pooled.pairs}"


def _rise(variant: Variant, statuses: Sequence[Status]) -> str:
    pooled = paired(tables.results_of(statuses, variant.name), 0.0)
    if pooled is None:
        return "no run yet"
    before = (pooled.both + pooled.only_base) / pooled.pairs
    return (
        f"{variant.title}, greedy, {tables.counted(pooled.runs, 'run')}: {before:.1%} to {before + pooled.rise:.1%}, "
        f"{tables.points(pooled.rise)} points, McNemar p = {tables.p_value(pooled.p)}"
    )


def _provenance(request: Request, statuses: Sequence[Status]) -> list[str]:
    """Where the numbers come from: the command, what was asked for and what ran, versions and machine."""
    results = tables.results_of(statuses)
    tasks = [task for task in request.asked_tasks if any(result.task == task for result in results)]
    seeds = [seed for seed in request.seeds if any(result.seed == seed for result in results)]
    lines = [
        f"    {request.command}",
        "",
        f"- Result: {headline(request, statuses)}.",
        f"- Profile: {request.profile_name}. Asked for: {tables.counted(len(request.asked_tasks), 'task')} x "
        f"{tables.counted(len(request.seeds), 'seed')} x {tables.counted(len(request.target.variants), 'method')} = "
        f"{tables.counted(len(statuses), 'run')}; ran: {len(results)} (tasks "
        f"{', '.join(map(tables.task_title, tasks)) or 'none'}; seeds {', '.join(map(str, seeds)) or 'none'}).",
        "- Base: one SFT checkpoint for each task. Training starts from states of LIBERO's placement sampler, evaluation from "
        "the official states, which no training and no choice of a checkpoint sees. Intervals are Wilson's at 95%; crashes of "
        "the simulator are counted apart.",
        f"- {BEST_OF} Numbers of the documents: {PAPER} and the post about it, OpenVLA-7B on LIBERO's own meshes.",
    ]
    for versions in dict.fromkeys(_join(result.versions) for result in results):
        lines.append(f"- Versions: {versions}.")
    return [*lines, _machines(results), ""] if results else [*lines, ""]


def _machines(results: Sequence[Result]) -> str:
    runs = Counter(f"{result.machine['cores']} cores of {result.machine['processor']}" for result in results)
    if len(runs) == 1:
        return f"- Machine: {next(iter(runs))}."
    listed = "; ".join(f"{machine} ({tables.counted(count, 'run')})" for machine, count in runs.items())
    return f"- Machines: {listed}. They round differently and are not equally fast, so minutes compare within one only."


def _join(versions: Any) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def _numbers(request: Request, statuses: Sequence[Status]) -> dict[str, Any]:
    """The document's numbers for programs. The outcome of every episode lies in the cells' own results."""
    return {
        "target": request.target.name,
        "title": request.target.title,
        "profile": request.profile_name,
        "command": request.command,
        "headline": headline(request, statuses),
        "asked": {"tasks": list(request.asked_tasks), "seeds": list(request.seeds), "cells": len(statuses)},
        "ran": len(tables.results_of(statuses)),
        "cells": [_cell_record(status) for status in statuses],
        "paired": {
            variant.name: {
                f"{temperature:g}": asdict(pooled)
                for temperature in tables.temperatures(statuses)
                if (pooled := paired(tables.results_of(statuses, variant.name), temperature))
            }
            for variant in request.target.variants
        },
    }


def _cell_record(status: Status) -> dict[str, Any]:
    record: dict[str, Any] = {
        "name": status.cell.name,
        "variant": status.variant.name,
        "task": status.cell.task,
        "seed": status.cell.seed,
        "status": "failed" if status.failure else "not run",
    }
    if status.result is None:
        return {**record, "failure": status.failure}
    return {**record, "status": "done", **_result_record(status.result)}


def _result_record(result: Result) -> dict[str, Any]:
    ends = {
        when: {f"{outcome.temperature:g}": asdict(rate) for outcome in outcomes if (rate := Rate.of([outcome]))}
        for when, outcomes in (("before", result.before), ("after", result.after))
    }
    return {
        **ends,
        "iterations": result.iterations,
        "ending": result.ending,
        "kept": result.kept,
        "train_seconds": result.train_seconds,
        "evaluation_seconds": result.evaluation_seconds,
        "base": dict(result.base),
        "versions": dict(result.versions),
        "machine": dict(result.machine),
    }


def _write_index(results: Path) -> None:
    """README.md of the results: a line for every document that lies there."""
    rows = []
    for path in sorted(results.glob("*/*.json")):
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            link = f"[{found['title']}]({path.parent.name}/{path.stem}.md)"
            ran = [cell for cell in found["cells"] if cell["status"] == "done"]
            where = [", ".join(dict.fromkeys(str(cell[key]) for cell in ran)) or "none" for key in ("task", "seed")]
            runs = f"{found['ran']} of {found['asked']['cells']}"
            rows.append([link, found["profile"], *where, runs, found["headline"]])
        except (ValueError, KeyError, TypeError):
            raise TgrpoError(f"{path} is no record of `tgrpo paper`; delete it and print that document again") from None
    lines = [
        "# Results",
        "",
        "The tables and figures of the paper and of the post about it, made again: `tgrpo paper NAME --profile PROFILE`. Every "
        "document says which command printed it, what was asked for and what has run, and lists every run. A result that is not "
        "what one would like stands here as it came out.",
        "",
        *tables.table(["document", "profile", "tasks that ran", "seeds", "runs", "result"], rows),
        "Each run is a DVC experiment in `data/paper`: `cd data/paper && dvc exp show`.",
    ]
    write_text(results / "README.md", "\n".join(lines) + "\n")
