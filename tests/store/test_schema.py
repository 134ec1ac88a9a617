"""The schema table and its document."""

import subprocess
import sys
from pathlib import Path

from stages.store.episodes import EPISODE_AXES, EPISODES_ARRAYS
from stages.store.format_doc import render
from stages.store.schema import ADVANTAGES_ARRAYS, AXES, GROUP_ARRAYS

ROOT = Path(__file__).parents[2]


def test_the_document_says_what_the_schema_says() -> None:
    text = (ROOT / "docs" / "format.md").read_text(encoding="utf-8")
    assert render(text) == text, "run `python -m stages.store.format_doc docs/format.md`"
    for spec in (*GROUP_ARRAYS, *ADVANTAGES_ARRAYS, *EPISODES_ARRAYS):
        assert f"| `{spec.name}` | {spec.axes or '-'} | {spec.dtype} |" in text


def test_names_are_unique_and_axes_known() -> None:
    axes = AXES | EPISODE_AXES
    for table in (GROUP_ARRAYS, ADVANTAGES_ARRAYS, EPISODES_ARRAYS):
        assert len({spec.name for spec in table}) == len(table)
        assert all(dim in axes for spec in table for dim in spec.dims)


def test_handles_and_provenance_load_neither_zarr_nor_torch() -> None:
    code = (
        "import sys, stages.store.handles, stages.store.groups, stages.store.advantages, stages.algo.advantages\n"
        "print([name for name in ('zarr', 'torch') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout == "[]\n"
