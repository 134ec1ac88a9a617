"""Results of cells that a repository keeps: beside the documents, small, and taken for run wherever it is cloned.

`data/` is no part of a repository. What a table needs of a cell is (the outcome of every episode, the history): a few
kilobytes in docs/results/PROFILE/cells/NAME. The name holds a digest of everything that can change the result, so a
record never stands for another cell.
"""

import shutil
from collections.abc import Iterable
from pathlib import Path

from stages.paper.cells import Cell
from stages.paper.results import HISTORY, RESULT, STILLS, VALIDATION
from stages.store.artifacts import atomic_directory

CELLS = "cells"
_KEPT = (RESULT, HISTORY, VALIDATION, STILLS)


def restore(cells: Iterable[Cell], records: Path, root: Path) -> None:
    """Puts the records of cells that have no result under `root` there."""
    for cell in cells:
        _copy(records / CELLS / cell.name, root / CELLS / cell.name)


def keep(cells: Iterable[Cell], root: Path, records: Path) -> None:
    """Records the cells that have a result under `root` and no record yet."""
    for cell in cells:
        _copy(root / CELLS / cell.name, records / CELLS / cell.name)


def _copy(there: Path, here: Path) -> None:
    if not (there / RESULT).exists() or (here / RESULT).exists():
        return
    with atomic_directory(here, overwrite=True) as folder:
        for name in _KEPT:
            if (there / name).exists():
                shutil.copyfile(there / name, folder / name)
