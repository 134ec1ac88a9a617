"""Renders the tables of `docs/format.md` from the schema: `python -m stages.store.format_doc docs/format.md`."""

import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import get_type_hints

from stages.store.episodes import EPISODE_AXES, EPISODES_ARRAYS, EpisodesAttrs
from stages.store.schema import (
    ADVANTAGES_ARRAYS,
    AXES,
    CHUNKS,
    COMMON_ATTRS,
    GROUP_ARRAYS,
    GROUP_SUMMARY,
    AdvantagesAttrs,
    ArraySpec,
    GroupAttrs,
)


def render(text: str) -> str:
    """Puts the table of that name between each `<!-- table: NAME -->` and the next `<!-- end -->`."""
    tables = {
        "axes": _table(("Axis", "What it counts"), {**AXES, **EPISODE_AXES}.items()),
        "chunks": _table(("Rule", "One zarr chunk holds"), ((name, rule.description) for name, rule in CHUNKS.items())),
        "group arrays": _array_table(GROUP_ARRAYS),
        "advantages arrays": _array_table(ADVANTAGES_ARRAYS),
        "episodes arrays": _array_table(EPISODES_ARRAYS),
        "common attributes": _table(("Attribute", "What it says"), _code_names(COMMON_ATTRS)),
        "group attributes": _table(("Attribute", "What it says"), _code_names(_descriptions(GroupAttrs))),
        "group summary": _table(("Field", "What it says"), _code_names(GROUP_SUMMARY)),
        "advantages attributes": _table(("Attribute", "What it says"), _code_names(_descriptions(AdvantagesAttrs))),
        "episodes attributes": _table(("Attribute", "What it says"), _code_names(_descriptions(EpisodesAttrs))),
    }
    return re.sub(
        r"(<!-- table: (.+?) -->\n).*?(<!-- end -->)",
        lambda match: f"{match[1]}\n{tables[match[2]]}\n{match[3]}",
        text,
        flags=re.DOTALL,
    )


def _array_table(specs: Iterable[ArraySpec]) -> str:
    header = ("Array", "Axes", "dtype", "Unit", "Chunks", "What it holds")
    return _table(header, ((f"`{s.name}`", s.axes or "-", s.dtype, s.unit, s.chunks, s.description) for s in specs))


def _table(header: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [header, ("---",) * len(header), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def _code_names(descriptions: Mapping[str, str]) -> list[tuple[str, str]]:
    return [(f"`{name}`", what) for name, what in descriptions.items()]


def _descriptions(cls: type) -> dict[str, str]:
    return {name: hint.__metadata__[0] for name, hint in get_type_hints(cls, include_extras=True).items()}


if __name__ == "__main__":
    document = Path(sys.argv[1])
    document.write_text(render(document.read_text(encoding="utf-8")), encoding="utf-8")
