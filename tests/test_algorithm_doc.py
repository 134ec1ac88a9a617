"""The table of choices in docs/algorithm.md says what the two profiles say."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "algorithm.md").read_text(encoding="utf-8")
PROFILES = {"params/openvla-7b.yaml": 2, "params.yaml": 3}  # and their columns, from 0


def choices() -> list[list[str]]:
    table = re.search(r"<!-- choices -->(.*)<!-- end -->", TEXT, re.DOTALL)
    assert table
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table[1].strip().splitlines()[2:]]
    return [row for row in rows if row[1]]


@pytest.mark.parametrize(("profile", "column"), PROFILES.items())
def test_the_choices_are_those_of_the_profiles(profile: str, column: int) -> None:
    params = yaml.safe_load((ROOT / profile).read_text())
    assert len(choices()) > 20
    for row in choices():
        value: Any = params
        for key in row[1].strip("`").split("."):
            value = value[key]
        assert yaml.safe_load(row[column]) == value, (
            f"docs/algorithm.md: {row[1]} is {row[column]}, {profile} has {value}"
        )


def test_every_algorithm_is_described() -> None:
    params = (ROOT / "stages" / "params.py").read_text()
    algos = re.search(r"Algo = Literal\[(.*?)\]", params)
    assert algos
    described = TEXT[TEXT.index("## What it is compared with") :]
    for name in re.findall(r'"(\w+)"', algos[1]):
        assert f"`{name}`" in described
