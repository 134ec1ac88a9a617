"""The architecture, held: imports point down only, and rooms do not know each other."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
ROOMS = {"algo", "sim", "policy", "rewards", "store"}
GROUND = {"types", "params", "errors", "seeding"}
HEAVY = {"torch", "transformers", "peft", "mujoco", "robosuite", "libero", "zarr", "matplotlib", "numpy", "pydantic"}


def imports(path: Path) -> Iterator[str]:
    """Every module that a file imports, also inside functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_rooms_import_only_themselves_and_the_ground() -> None:
    for room in ROOMS:
        for path in (ROOT / "stages" / room).rglob("*.py"):
            for name in imports(path):
                if name.startswith("stages."):
                    assert name.split(".")[1] in {room} | GROUND, f"{path} imports {name}"
                assert not name.startswith("tgrpo_cli"), f"{path} imports {name}"


def test_the_ground_imports_nothing_of_ours_but_itself() -> None:
    for module in GROUND:
        for name in imports(ROOT / "stages" / f"{module}.py"):
            if name.startswith(("stages.", "tgrpo_cli")):
                assert name.split(".")[1] in GROUND, f"{module} imports {name}"


def test_stages_do_not_import_the_command_line() -> None:
    for path in (ROOT / "stages").rglob("*.py"):
        assert not any(name.startswith("tgrpo_cli") for name in imports(path)), path


def test_the_paper_stands_on_top_of_the_stages() -> None:
    for path in (ROOT / "stages").rglob("*.py"):
        if path.parent.name != "paper":
            assert not any(name.startswith("stages.paper") for name in imports(path)), path


def test_the_command_line_imports_nothing_heavy_at_its_top() -> None:
    for path in (ROOT / "tgrpo_cli").glob("*.py"):
        tree = ast.parse(path.read_text())
        top = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
        for node in top:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            for name in names:
                assert name.split(".")[0] not in HEAVY, f"{path} imports {name}"
                if name.startswith("stages"):
                    assert name in {"stages.errors", "stages.reporting"}, f"{path} imports {name}"


def test_algo_knows_only_arrays() -> None:
    for path in (ROOT / "stages" / "algo").glob("*.py"):
        outside = {name.split(".")[0] for name in imports(path)} - {"stages"}
        assert outside <= {"numpy", "scipy", "torch", "math", "dataclasses", "typing", "collections", "statistics"}, (
            path
        )
