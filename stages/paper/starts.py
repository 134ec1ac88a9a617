"""What a base is worth before any training: evaluated in the first cell that starts from it, and lent to the others.

The evaluation before a run and the validation of its iteration 0 ask nothing of how the run learns. Two cells that differ in
that alone would compute both to the same bits, about a sixth of a cell's time.
"""

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stages.paper.cells import Cell
from stages.run_folder import Run
from stages.store.artifacts import atomic_directory, digest_of
from stages.store.provenance import package_versions

# The params that both read; all others are about learning.
_DECIDED_BY: Mapping[str, Any] = {
    "seed": True,
    "task": True,
    "sim": True,
    "policy": {"device", "dtype", "center_crop", "sampling", "threads"},
    "gen_reward": True,
    "eval": True,
    "train": {"eval_temperatures", "validation"},
}


def lend_start(cell: Cell, run: Run, root: Path) -> None:
    """Puts what is known of the cell's start into its run, where that lacks it.

    Args:
        run: claimed already.
        root: where `keep_start` keeps it, in `starts/`.

    Raises:
        ArtifactError: what was kept cannot be read, or the disk is full.
    """
    _copy(_kept(cell, run, root), run)


def keep_start(cell: Cell, run: Run, root: Path) -> None:
    """Keeps what a run that has ended found out about its start; `root` and errors as of `lend_start`."""
    _copy(run, _kept(cell, run, root))


def _kept(cell: Cell, run: Run, root: Path) -> Run:
    """A folder as deep as a run's, so that paths from an evaluation to its checkpoint stay true."""
    params = cell.params.model_dump(mode="json", include=dict(_DECIDED_BY))
    # Versions too: a result says with which its episodes were played.
    text = json.dumps(
        {"params": params, "checkpoint": digest_of(run.start), "versions": package_versions()}, sort_keys=True
    )
    name = f"{cell.task.replace('/', '-')}_s{cell.seed}_{hashlib.sha256(text.encode()).hexdigest()[:12]}"
    return Run(run.params, run.start, run.reward, root / "starts" / name)


def _copy(there: Run, here: Run) -> None:
    for evaluation in sorted((there.folder / "evals").glob("before-*")):
        at = here.folder / "evals" / evaluation.name
        if not at.exists():
            with atomic_directory(at) as folder:
                shutil.copytree(evaluation, folder, dirs_exist_ok=True)
    validation = there.read_validation(0)
    if validation is not None and here.read_validation(0) is None:
        here.validation(0).parent.mkdir(parents=True, exist_ok=True)
        here.write_validation(0, {k: v for k, v in validation.items() if k not in ("iteration", "checkpoint")})
