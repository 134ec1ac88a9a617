"""Cells as DVC experiments, in a Git and DVC repository of their own at data/paper.

`dvc exp run` in the checkout itself, `--temp` or not, stashes the user's changes and resets the working tree while it
sets up an experiment (`dvc.repo.experiments.queue.base`); a kill at that moment leaves them in the stash, and two cells
cannot be prepared at once. Here the checkout, its commits and its changes are never touched, and a checkout without Git
works as well. `data/paper` is ignored by the checkout and holds

    dvc.yaml, .git, .dvc    one stage, committed once by tgrpo; each cell is an experiment on that commit
    cell.yaml               the cell of the experiment that runs, all its params
    cells/NAME/             the results that tables read
    runs/NAME/              the runs of `tgrpo train`; one that was cut off goes on there
    bases/                  base checkpoints of tasks for which params name none
    failures/NAME/          why a cell has no result

    cd data/paper && dvc exp show      lists every cell with its params and success rates

A result that was deleted comes back from DVC's run cache without a second run.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from stages.errors import TgrpoError
from stages.paper.cell_run import describe_cell
from stages.paper.cells import Cell
from stages.paper.results import FAILED, RESULT, Result, read_result
from stages.store.artifacts import atomic_directory, write_text

ROOT = Path("data/paper")
CELL = "cell.yaml"
RESULTS = "result"
METRICS = "metrics.json"

_PIPELINE = """\
# Written by `tgrpo paper`: one cell, an experiment for each. See `tgrpo paper --help`.
stages:
  cell:
    cmd: cd "$TGRPO_PROJECT" && "$TGRPO_PYTHON" -m tgrpo_cli.paper_cell
    params:
      - cell.yaml:
    outs:
      - result
    metrics:
      - metrics.json
"""
_IGNORED = "/cells/\n/runs/\n/bases/\n/failures/\n/result\n/metrics.json\n"


def stored_result(cell: Cell, root: Path = ROOT) -> Result | None:
    """The cell's result, where it has run.

    Raises:
        ArtifactError: one that cannot be read.
    """
    return read_result(root / "cells" / cell.name)


def stored_failure(cell: Cell, root: Path = ROOT) -> str | None:
    """Why the cell's last run ended without a result, in one line; None where it did not."""
    path = root / "failures" / cell.name / FAILED
    return path.read_text(encoding="utf-8").strip() if path.exists() else None


def run_as_experiment(cell: Cell, root: Path = ROOT) -> None:
    """Runs a cell that has no result yet; `stored_result` or `stored_failure` tells how it ended.

    What the run prints goes to stderr.

    Raises:
        TgrpoError: no Git, no room, or DVC itself failed.
        KeyboardInterrupt: as it comes; the run goes on from where it was the next time.
    """
    _prepare(root)
    shutil.rmtree(root / "failures" / cell.name, ignore_errors=True)
    write_text(root / CELL, describe_cell(cell))
    if cell.name in _dvc(root, "exp", "list", "--name-only").stdout.split():
        _dvc(root, "exp", "remove", cell.name)
    done = subprocess.run(
        [sys.executable, "-m", "dvc", "exp", "run", "--name", cell.name],
        cwd=root,
        env=_environment(),
        stdin=subprocess.DEVNULL,
        stdout=2,  # stdout is for what the command itself prints
        check=False,
    )
    if done.returncode:
        if stored_failure(cell, root) is None:
            raise TgrpoError(
                f"{cell.name}: `dvc exp run` in {root} ended with {done.returncode} and its reason stands above; run the command "
                "again to go on from where it was"
            )
        return
    shutil.rmtree(root / "cells" / cell.name, ignore_errors=True)
    with atomic_directory(root / "cells" / cell.name) as folder:
        shutil.copytree(root / RESULTS, folder, dirs_exist_ok=True)
    if not (root / "cells" / cell.name / RESULT).exists():
        raise TgrpoError(
            f"{root / RESULTS} holds no {RESULT} after {cell.name} ran; delete {root / CELL} and run it again"
        )


def _prepare(root: Path) -> None:
    """Makes the repository, or brings the one that is there to this version's pipeline."""
    if shutil.which("git") is None:
        raise TgrpoError(
            "`git` is not installed, and DVC keeps experiments in it; install git and run the command again"
        )
    root.mkdir(parents=True, exist_ok=True)
    if not (root / ".git").exists():
        _git(root, "init", "--quiet", "--initial-branch=main")
        _git(root, "config", "user.name", "tgrpo paper")
        _git(root, "config", "user.email", "tgrpo@localhost")
        _git(root, "config", "commit.gpgsign", "false")
    if not (root / ".dvc" / "config").exists():
        _dvc(root, "init", "--quiet", "--force")
        _dvc(root, "config", "core.analytics", "false")
        _dvc(root, "config", "core.check_update", "false")
    write_text(root / "dvc.yaml", _PIPELINE)
    write_text(root / ".gitignore", _IGNORED)
    if not (root / CELL).exists():
        write_text(root / CELL, "{}\n")
    _git(root, "add", "dvc.yaml", ".gitignore", ".dvc", ".dvcignore")
    if not _git(root, "ls-files", CELL).stdout:
        _git(root, "add", CELL)
    if _git(root, "diff", "--cached", "--name-only", "--", "dvc.yaml", ".gitignore", ".dvc").stdout:
        _git(root, "commit", "--quiet", "--message", "The pipeline of one cell")


def _git(root: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return _run(root, "git", *arguments)


def _dvc(root: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return _run(root, sys.executable, "-m", "dvc", *arguments)


def _run(root: Path, *command: str) -> "subprocess.CompletedProcess[str]":
    done = subprocess.run(
        command, cwd=root, env=_environment(), stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip() or f"exit {done.returncode}").splitlines()[-1]
        shown = " ".join(command[3:] if command[0] == sys.executable else command[1:])
        raise TgrpoError(
            f"{root}: `{'dvc' if command[0] == sys.executable else 'git'} {shown}` failed ({said}); "
            f"delete {root}/.git and {root}/.dvc to make the repository anew, which keeps all results"
        )
    return done


def _environment() -> dict[str, str]:
    """This process's, without what points Git elsewhere (as inside a hook), and with what the stage's command needs."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("GIT_", "DVC_"))}
    return {**kept, "TGRPO_PROJECT": str(Path.cwd()), "TGRPO_PYTHON": sys.executable}
