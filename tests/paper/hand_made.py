"""Results of cells, made by hand."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from stages.paper.cells import Cell
from stages.paper.results import Outcome, Result, write_result
from stages.params import Params


def outcome(won: str, temperature: float = 0.0, repeats: int = 1) -> Outcome:
    """`10x` is a success, a failure and a crash on official/0, /1 and /2; repeats follow each other."""
    states = len(won) // repeats
    marks: Mapping[str, bool | None] = {"1": True, "0": False, "x": None}
    return Outcome(temperature, tuple((f"official/{n % states}", n // states, marks[m]) for n, m in enumerate(won)))


def result(
    before: str, after: str, task: str = "libero_object/6", seed: int = 0, sampled: tuple[str, str] | None = None
) -> Result:
    """A cell's result from its greedy outcomes, and sampled ones of two repeats."""
    more = sampled or ("", "")
    ends = [
        (outcome(greedy), *((outcome(drawn, 1.0, 2),) if sampled else ()))
        for greedy, drawn in zip((before, after), more, strict=True)
    ]
    return Result(
        name="by-hand",
        key="0" * 64,
        task=task,
        seed=seed,
        before=ends[0],
        after=ends[1],
        iterations=4,
        ending="completed",
        kept=3,
        train_seconds=90.0,
        evaluation_seconds=30.0,
        base={"path": "base", "made": False, "identity": "b"},
        params={},
        versions={"torch": "2.13.0"},
        machine={"cores": 2, "processor": "Z80"},
    )


def store(root: Path, cell: Cell, made: Result) -> None:
    """Puts a result where tables find that of the cell."""
    folder = root / "cells" / cell.name
    folder.mkdir(parents=True)
    write_result(folder, replace(made, name=cell.name, key=cell.key, task=cell.task, seed=cell.seed))


def history(root: Path, cell: Cell, rows: Sequence[str]) -> None:
    """A history.csv of the cell, of columns iteration, success, log_prob, entropy."""
    text = "\n".join(["iteration,success,log_prob,entropy", *rows])
    (root / "cells" / cell.name / "history.csv").write_text(text + "\n")


def with_base(params: Params, base: str) -> Params:
    return params.model_copy(update={"policy": params.policy.model_copy(update={"base": base})})
