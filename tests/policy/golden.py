"""A small checkpoint in the published layout, and what OpenVLA's own code computed from it."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

ROOT = Path(__file__).parents[2]
REDUCED = ROOT / "tests" / "fixtures" / "openvla-golden"
FULL = ROOT.parent / "shared" / "golden"  # beside the repository, where it is at hand

FOLDERS = [
    pytest.param(REDUCED, id="reduced"),
    pytest.param(FULL, id="full", marks=pytest.mark.skipif(not FULL.is_dir(), reason="the full set is not here")),
]


def arrays(folder: Path, name: str) -> dict[str, NDArray]:
    """All arrays of `name`.npz."""
    with np.load(folder / f"{name}.npz") as file:
        return dict(file)
