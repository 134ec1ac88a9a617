"""The parts of LIBERO's source that decide a task's goal, cut out of the installed package without importing it."""

import ast
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from stages.rewards.llm.errors import LlmError

LIMIT = 16_000  # characters; LIBERO's own goals need less than half
_CUT = "\n# (more of LIBERO's source left out)\n"

_Function = ast.FunctionDef
_HELPERS = {"__init__", "_check_success", "_eval_predicate"}  # of a problem class: its heights, and how it judges


@dataclass(frozen=True)
class _Module:
    path: Path
    text: str
    tree: ast.Module

    def classes(self) -> list[ast.ClassDef]:
        return [node for node in self.tree.body if isinstance(node, ast.ClassDef)]

    def source(self, node: ast.AST) -> str:
        return ast.get_source_segment(self.text, node, padded=True) or ""


def relevant_source(root: Path, bddl: str, goals: Iterable[Sequence[str]], limit: int = LIMIT) -> str:
    """Excerpts of the task's problem class, its goal's predicates, and what these call in object states and fixtures.

    Methods are followed by their names, so the excerpts hold what may be called rather than what will be.

    Args:
        root: the folder of the installed package `libero.libero`.
        bddl: text of the task's BDDL file.
        goals: predicates with their arguments, as `Context.goals` has them.
        limit: characters at most.

    Raises:
        LlmError: the installed LIBERO is built differently.
    """
    envs = root / "envs"
    goals = [tuple(goal) for goal in goals]
    excerpts: list[str] = []
    problem = _problem_name(bddl)
    module = _read(envs / "problems" / f"{problem}.py")
    excerpts += [
        _excerpt(envs, module, cls, [m for m in _methods(cls) if m.name in _HELPERS])
        for cls in module.classes()
        if cls.name.lower() == problem
    ]

    # A predicate asks the state of its last argument; that of a place is a `SiteObjectState`.
    names = _categories(bddl)
    predicates = _read(envs / "predicates" / "base_predicates.py")
    table = _predicate_table(_read(envs / "predicates" / "__init__.py"))
    called: dict[str, set[str]] = {}
    for cls in predicates.classes():
        receivers = {goal[-1] for goal in goals if table.get(goal[0].lower()) == cls.name}
        if receivers:
            excerpts.append(_excerpt(envs, predicates, cls, _methods(cls)))
        for receiver in receivers:
            state = "ObjectState" if receiver in names else "SiteObjectState"
            called.setdefault(state, set()).update(_calls(_methods(cls)))

    owners = {name for name in names for goal in goals if goal[-1] == name or goal[-1].startswith(f"{name}_")}
    asked: set[str] = set()  # what states call in turn
    states = _read(envs / "object_states" / "base_object_states.py")
    for cls in states.classes():
        wanted = called.get(cls.name, set())
        wanted |= _calls([m for m in _methods(cls) if m.name in wanted])  # of its own
        methods = [m for m in _methods(cls) if m.name in wanted]
        if methods:
            excerpts.append(_excerpt(envs, states, cls, methods))
            asked |= _calls(methods)
    sites, fixtures = _read(envs / "objects" / "site_object.py"), _read(envs / "objects" / "articulated_objects.py")
    classes = {"SiteObject"} | {_class_name(names[owner]) for owner in owners}
    for module, cls in [(m, cls) for m in (fixtures, sites) for cls in m.classes() if cls.name in classes]:
        methods = [m for m in _methods(cls) if m.name in asked]
        if methods and module is fixtures:  # its thresholds stand there
            methods = [m for m in _methods(cls) if m.name == "__init__"] + methods
        if methods:
            excerpts.append(_excerpt(envs, module, cls, methods))
    return _bounded(excerpts, limit)


def _read(path: Path) -> _Module:
    try:
        text = path.read_text(encoding="utf-8")
        return _Module(path, text, ast.parse(text))
    except (OSError, SyntaxError, ValueError):
        raise LlmError(
            f"{path}: this part of LIBERO's source cannot be read; run: pip install --force-reinstall --no-deps hf-libero==0.1.4"
        ) from None


def _methods(cls: ast.ClassDef) -> list[_Function]:
    return [node for node in cls.body if isinstance(node, _Function)]


def _calls(methods: Iterable[_Function]) -> set[str]:
    return {
        node.func.attr
        for method in methods
        for node in ast.walk(method)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr != "__init__"
    }


def _excerpt(envs: Path, module: _Module, cls: ast.ClassDef, methods: Sequence[_Function]) -> str:
    bases = ", ".join(ast.unparse(base) for base in cls.bases)
    head = f"class {cls.name}({bases}):" if bases else f"class {cls.name}:"
    body = "\n\n".join(module.source(method).rstrip() for method in methods)
    return f"# {module.path.relative_to(envs.parent).as_posix()}\n{head}\n{body}\n"


def _problem_name(bddl: str) -> str:
    match = re.search(r"\(\s*problem\s+(\w+)\s*\)", bddl, re.IGNORECASE)
    if match is None:
        raise LlmError("the task's BDDL names no problem; expected `(define (problem NAME)` in its first line")
    return match[1].lower()


def _predicate_table(module: _Module) -> dict[str, str]:
    """Name in BDDL -> class, from the module's one dictionary of instances."""
    return {
        key.value: value.func.id
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Dict)
        for key, value in zip(node.keys, node.values, strict=True)
        if isinstance(key, ast.Constant)
        and isinstance(key.value, str)
        and isinstance(value, ast.Call)
        and isinstance(value.func, ast.Name)
    }


def _categories(bddl: str) -> dict[str, str]:
    """Name -> category of all objects and fixtures: `basket_1 - basket`."""
    found: dict[str, str] = {}
    for section in re.findall(r"\(:(?:objects|fixtures)(.*?)\)", bddl, re.DOTALL):
        names: list[str] = []
        words = iter(section.split())
        for word in words:
            if word == "-":
                category = next(words, "")
                found |= dict.fromkeys(names, category)
                names = []
            else:
                names.append(word)
    return found


def _class_name(category: str) -> str:
    return "".join(word.capitalize() for word in category.split("_"))


def _bounded(excerpts: Sequence[str], limit: int) -> str:
    """Whole excerpts, in their order, as long as they fit."""
    text = ""
    for excerpt in excerpts:
        if len(text) + len(excerpt) + len(_CUT) + 1 > limit:
            return text + _CUT
        text += ("\n" if text else "") + excerpt
    return text
