"""Runs one cell: `tgrpo train` where it has not ended yet, and what its tables need of it in a small folder."""

import json
import shutil
from pathlib import Path
from typing import Any

import yaml

from stages.machine import machine
from stages.paper.bases import Base, ensure_base
from stages.paper.cells import Cell
from stages.paper.results import (
    HISTORY,
    STILLS,
    VALIDATION,
    Outcome,
    Result,
    successes,
    write_result,
)
from stages.paper.starts import keep_start, lend_start
from stages.params import Params
from stages.reporting import Reporter
from stages.run_folder import Run
from stages.store.provenance import package_versions, read_manifest
from stages.telemetry import TELEMETRY, read_telemetry
from stages.workspace import open_checkpoint


def describe_cell(cell: Cell) -> str:
    """The cell as YAML: what `read_cell` reads, and what `dvc exp show` shows as its params."""
    base = cell.base
    record = {
        "name": cell.name,
        "key": cell.key,
        "base": {
            "path": base.path.as_posix(),
            "made": base.made,
            "identity": base.identity,
            "seed": base.params.seed,
        },
        "params": cell.params.model_dump(mode="json"),
    }
    return yaml.safe_dump(record, sort_keys=False)


def read_cell(path: Path) -> Cell:
    """The way back from `describe_cell`."""
    record = yaml.safe_load(path.read_text(encoding="utf-8"))
    params, base = Params.model_validate(record["params"]), record["base"]
    making = params.model_copy(update={"seed": base["seed"]})
    return Cell(record["name"], params, Base(Path(base["path"]), base["made"], base["identity"], making))


def run_cell(cell: Cell, root: Path, out: Path, reporter: Reporter) -> Result:
    """Trains and evaluates where that is not on disk yet, and writes the result into the new folder `out`.

    Args:
        root: `runs/` in it holds the run's folder, from which a cell that was cut off goes on, and `starts/` what other cells
            found out about the same start.

    Raises:
        TgrpoError: the base cannot be made, or the run cannot start or fails.
    """
    from stages.train import train

    run = root / "runs" / cell.name
    params, checkpoint = open_checkpoint(cell.params, ensure_base(cell.base, reporter))
    claimed = Run(params, checkpoint, None, run)
    claimed.claim(resume=True)
    lend_start(cell, claimed, root)
    train(cell.params, checkpoint, None, run, reporter, resume=True)
    keep_start(cell, claimed, root)
    out.mkdir(parents=True)
    result = _collect(cell, run)
    for name in (HISTORY, VALIDATION):
        if (run / name).exists():
            shutil.copyfile(run / name, out / name)
    _draw_stills(cell.params, run, out / STILLS)
    write_result(out, result)
    return result


def metrics(result: Result) -> dict[str, Any]:
    """The figures that `dvc exp show` and `dvc metrics show` list, as rates."""
    table: dict[str, Any] = {"iterations": result.iterations, "train_minutes": round(result.train_seconds / 60, 2)}
    for before, after in zip(result.before, result.after, strict=True):
        rates = {}
        for when, outcome in (("before", before), ("after", after)):
            won, count, _ = successes([outcome])
            rates[when] = round(won / count, 4) if count else None
        table["greedy" if before.temperature == 0 else f"sampled_t{before.temperature:g}"] = rates
    return table


def _collect(cell: Cell, run: Path) -> Result:
    """Reads a whole run folder."""
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    telemetry = read_telemetry(run / TELEMETRY)
    evaluations = sum(line["seconds_evaluate"] for line in telemetry)
    return Result(
        name=cell.name,
        key=cell.key,
        task=cell.task,
        seed=cell.seed,
        before=_outcomes(run, "before", cell.params),
        after=_outcomes(run, "after", cell.params),
        iterations=int(summary["iterations"]),
        ending=str(summary["ending"]["kind"]),
        kept=int(summary["kept"]),
        train_seconds=round(sum(line["seconds"] for line in telemetry) - evaluations, 1),
        evaluation_seconds=round(evaluations, 1),
        base={"path": cell.base.path.as_posix(), "made": cell.base.made, "identity": cell.base.identity},
        params=cell.params.model_dump(mode="json", exclude={"loop"}),
        versions=package_versions(),
        machine=machine(),
    )


def _outcomes(run: Path, when: str, params: Params) -> tuple[Outcome, ...]:
    from stages.store.episodes import open_episodes

    outcomes = []
    for temperature in params.train.eval_temperatures:
        episodes = open_episodes(run / "evals" / f"{when}-t{temperature:g}")
        won, crashed, repeat = (episodes[name][:].tolist() for name in ("success", "crashed", "repeat"))
        rows = zip(episodes.starts, repeat, won, crashed, strict=True)
        outcomes.append(
            Outcome(temperature, tuple((str(start), n, None if lost else success) for start, n, success, lost in rows))
        )
    return tuple(outcomes)


def _draw_stills(params: Params, run: Path, out: Path) -> None:
    """Stills of the first success after training, at the first temperature that has one; nothing where none has."""
    from stages.paper.stills import draw_stills
    from stages.store.episodes import open_episodes

    for temperature in params.train.eval_temperatures:
        evaluation = run / "evals" / f"after-t{temperature:g}"
        episodes = open_episodes(evaluation)
        won = [n for n, success in enumerate(episodes["success"][:].tolist()) if success]
        if won:
            sim = type(params.sim).model_validate(read_manifest(evaluation, "eval").params["sim"])
            fitted = params.model_copy(update={"sim": sim})
            draw_stills(fitted, episodes.starts[won[0]], episodes.states(won[0]), out)
            return
