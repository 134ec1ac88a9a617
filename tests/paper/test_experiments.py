"""Cells as DVC experiments, for real: one runs, is read from disk after, comes back from DVC's cache, or fails in one line."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from stages.errors import ParamsError, TaskError, TgrpoError, UsageError
from stages.paper.documents import Request, paper
from stages.paper.experiments import ROOT, run_as_experiment, stored_failure, stored_result
from stages.paper.targets import TARGETS, plan
from tgrpo_cli.paper import command

TINY = (
    "rollout.max_env_steps=24",
    "rollout.groups=1",
    "eval.max_env_steps=24",
    "eval.episodes=2",
    "eval.repeats=1",
    "train.eval_temperatures=[0.0]",
    "train.validation.every=0",
    "train.iterations=2",
    "update.epochs=1",
    "policy.threads=1",
    "advantage.min_return_std=0",
)


def tiny(*tasks: str, **options: object) -> Request:
    given: dict[str, object] = {"tasks": tasks, "seeds": (0,), "options": TINY, "max_cells": 1, **options}
    return Request(TARGETS["table1"], Path("params.yaml"), **given)  # type: ignore[arg-type]


@pytest.mark.slow
def test_a_cell_runs_once_and_its_result_comes_back(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project)
    _, cell = plan(TARGETS["table1"], Path("params.yaml"), ["libero_object/6"], [0], TINY, ROOT)[0]
    text = paper(tiny("libero_object/6")).read_text()
    result = stored_result(cell)
    assert result is not None
    assert (result.iterations, result.ending, result.kept) == (2, "completed", 2)
    assert [state for state, _, _ in result.after[0].episodes] == ["official/0", "official/1"]
    assert result.train_seconds > 0 and result.versions["mujoco"] == "3.3.2"
    assert "3 runs; ran: 1 (tasks 7 (libero_object/6); seeds 0)" in text
    history = ROOT / "cells" / cell.name / "history.csv"
    assert len(history.read_text().splitlines()) == 3
    shown = subprocess.run(
        [sys.executable, "-m", "dvc", "exp", "show", "--csv"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert cell.name in shown.stdout and "greedy.after" in shown.stdout
    # A result that is lost comes back from DVC's cache, even when the run itself is gone.
    shutil.rmtree(ROOT / "cells" / cell.name)
    shutil.rmtree(ROOT / "runs")
    run_as_experiment(cell)
    assert stored_result(cell) == result
    assert not (ROOT / "runs").exists()


@pytest.mark.slow
def test_a_cell_that_fails_says_why_and_the_document_too(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project)
    _, cell = plan(TARGETS["table1"], Path("params.yaml"), ["libero_goal/1"], [0], TINY, ROOT)[0]
    text = paper(tiny("libero_goal/1")).read_text()
    assert stored_result(cell) is None
    assert "cannot be built" in str(stored_failure(cell))  # the generated meshes are for libero_object
    assert f"failed: {stored_failure(cell)}" in text


def test_without_git_it_says_what_is_missing(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project)
    monkeypatch.setenv("PATH", str(project))
    with pytest.raises(TgrpoError, match=r"`git` is not installed.*install git"):
        paper(tiny("libero_object/6"))
    assert not ROOT.exists()


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        (["table9"], UsageError, "no 'table9' here; choose one of table1, table3, fig2"),
        (["table1", "--tasks", "10"], TaskError, "libero_object has 10 tasks"),
        (["table1", "--tasks", "6,6"], UsageError, "--tasks 6,6 names something twice"),
        (["table1", "--seeds", "x"], UsageError, "--seeds x: 'x' is no whole number"),
        (["table1", "--seeds", "0,00"], UsageError, "--seeds 0,00 names something twice"),
        (["table1", "--no-run", "--set", "train.iteration=3"], ParamsError, "did you mean 'iterations'?"),
        (["table1", "--no-run", "--iterations", "0"], ParamsError, "train.iterations = 0"),
        (["table1", "--no-run", "--profile", "gpu"], ParamsError, "gpu.yaml does not exist"),
        (["table1", "--no-run", "--set", "policy.base=nowhere/at/all"], TgrpoError, "nowhere/at/all does not exist"),
        (["table1", "--no-run", "--set", "task=libero_object/6"], UsageError, "name tasks with --tasks"),
        (
            ["groupsize", "--set", "rollout.envs=3"],
            UsageError,
            "groupsize compares methods that set rollout.envs themselves",
        ),
        (["table3", "--tasks", "6", "--set", "advantage.a1=1"], UsageError, "compares methods that set advantage.a1"),
        (["fig7", "--tasks", "6,8"], UsageError, "fig7 is a surface for one task, but 2 are given"),
        (["table1", "--budget", "-1"], UsageError, "--budget -1"),
        (["table1", "--max-cells", "-1"], UsageError, "--max-cells -1"),
    ],
)
def test_bad_input_is_one_line_with_the_remedy(
    project: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], error: type[TgrpoError], says: str
) -> None:
    monkeypatch.chdir(project)
    app = typer.Typer()
    app.command()(command)
    done = CliRunner().invoke(app, arguments)
    assert isinstance(done.exception, error)
    assert says in str(done.exception) and "\n" not in str(done.exception)
    assert done.stdout == "" and not (project / "docs").exists()


def test_the_command_prints_the_handle_of_its_document(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project)
    app = typer.Typer()
    app.command()(command)
    done = CliRunner().invoke(app, ["fig6", "--no-run", "--seeds", "0"])
    assert done.exit_code == 0
    assert '"kind": "paper", "path": "docs/results/cpu/fig6.md"' in done.stdout
    assert not ROOT.exists()  # nothing ran
