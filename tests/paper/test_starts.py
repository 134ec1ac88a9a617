"""The evaluation of a base, computed by one cell and lent to others."""

from pathlib import Path

import pytest

from stages import train as training
from stages.paper.cell_run import run_cell
from stages.paper.cells import Cell
from stages.paper.targets import TARGETS, plan
from stages.reporting import Silent
from stages.store.artifacts import digest_of
from stages.store.provenance import read_manifest, resolve_reference
from tests.conftest import ROOT
from tests.paper.test_experiments import TINY

OPTIONS = (*TINY, "train.iterations=1", "train.validation.every=1", "train.validation.episodes=2")


def cells(root: Path, *options: str, seed: int = 0) -> list[Cell]:
    """TGRPO and TGRPO without T, on one task."""
    return [
        cell
        for _, cell in plan(
            TARGETS["table1"], Path("params.yaml"), ["libero_object/6"], [seed], [*OPTIONS, *options], root
        )
    ]


@pytest.mark.slow
def test_a_second_cell_takes_over_what_the_first_found_out_to_the_last_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    done: list[str] = []
    for name in ("evaluate_policy", "validate"):
        core = getattr(training, name)
        monkeypatch.setattr(training, name, lambda *given, of=name, core=core: (done.append(of), core(*given))[1])

    def run(cell: Cell, root: Path) -> list[str]:
        """What the cell computes; its run and its result are left in `root`."""
        done.clear()
        run_cell(cell, root, root / "cells" / cell.name, Silent())
        return sorted(done)

    root, alone = tmp_path / "shared", tmp_path / "alone"
    first, second, _ = cells(root)
    everything = ["evaluate_policy", "evaluate_policy", "validate", "validate"]
    assert run(first, root) == everything
    assert run(second, root) == ["evaluate_policy", "validate"]  # of what it learnt
    assert run(second, alone) == everything
    lent, own = root / "runs" / second.name, alone / "runs" / second.name
    for part in ("evals/before-t0/episodes.zarr", "validations/000.json", "evals/after-t0/episodes.zarr"):
        assert digest_of(lent / part) == digest_of(own / part), part
    # The kept one still names the checkpoint that it is of, and one of longer episodes is another.
    (kept,) = (root / "starts").iterdir()
    recorded = read_manifest(kept / "evals" / "before-t0", "eval").inputs["checkpoint"]
    assert resolve_reference(recorded, kept / "evals" / "before-t0").resolve() == first.base.path.resolve()
    (other, *_) = cells(root, "eval.max_env_steps=28")
    assert run(other, root) == everything
