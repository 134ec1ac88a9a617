"""From the text of a program to code that may run in the sandbox, or to a refusal with its line."""

import ast
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from types import CodeType

from stages.rewards.errors import RewardError
from stages.rewards.interface import FUNCTION
from stages.rewards.sandbox.allowed import (
    MAX_DEPTH,
    MAX_LABEL,
    MAX_LITERAL,
    MAX_MILESTONES,
    MAX_NAME,
    MAX_SOURCE,
)
from stages.rewards.sandbox.names import collect, no_recursion
from stages.rewards.sandbox.refusal import Refusal, quoted, refuse
from stages.rewards.sandbox.restricted import second_opinion
from stages.rewards.sandbox.rules import Rules

FILENAME = "<reward program>"
"""What the code says it comes from, so that the program's lines can be told from others in a traceback."""


@dataclass(frozen=True)
class CheckedProgram:
    """A program that may run."""

    code: CodeType
    vectorised: bool
    function_line: int  # of compute_reward
    lines: int
    bound: Mapping[str, int]  # values' names -> the line that binds them first


def check_program(source: str, path: str) -> None:
    """Judges the text of a program without running it.

    Args:
        path: what messages call the program.

    Raises:
        RewardError: something that a reward program may not hold, by its line.
    """
    checked(source, path)


def checked(source: str, path: str) -> CheckedProgram:
    """Judges and compiles a program.

    Raises:
        RewardError: something that a reward program may not hold, by its line.
    """
    try:
        tree = _parse(source)
        _limit_depth(tree)
        _limit_literals(tree)
        tree = _WithoutHints().visit(tree)
        function = _signature(tree)
        vectorised, milestones = _constant(tree, "VECTORISED"), _constant(tree, "MILESTONES")
        _milestones(milestones)
        if vectorised and not (isinstance(vectorised, ast.Constant) and isinstance(vectorised.value, bool)):
            raise refuse(vectorised, "VECTORISED is neither True nor False", "write VECTORISED = True, or leave it out")
        names = collect(tree)
        Rules(names, labels=milestones).visit(tree)
        no_recursion(names)
        second_opinion(tree)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the program's style, on a terminal that is not its own
            code = compile(tree, FILENAME, "exec", dont_inherit=True)
        return CheckedProgram(
            code,
            isinstance(vectorised, ast.Constant) and bool(vectorised.value),
            function.lineno,
            len(source.splitlines()),
            names.values,
        )
    except Refusal as refusal:
        raise RewardError(path, refusal.line, refusal.found, refusal.remedy) from None
    except SyntaxError as error:
        raise RewardError(path, error.lineno, f"no valid Python: {error.msg}", "mend the syntax") from None
    except (RecursionError, MemoryError):
        raise RewardError(path, _longest(source), "nested too deeply", "write it in shorter expressions") from None


def milestone_names(source: str) -> tuple[str, ...]:
    """`MILESTONES` of a program by index, read without running it; empty where it gives none."""
    try:
        node = _constant(_WithoutHints().visit(_parse(source)), "MILESTONES")
        return _milestones(node)
    except (Refusal, SyntaxError, RecursionError, MemoryError):
        return ()


def _parse(source: str) -> ast.Module:
    if len(source) > MAX_SOURCE:
        line = source.count("\n", 0, MAX_SOURCE) + 1
        raise Refusal(line, f"{len(source)} characters long", f"a program has at most {MAX_SOURCE}")
    bad = re.search("[\0\ud800-\udfff]", source)
    if bad:
        line = source.count("\n", 0, bad.start()) + 1
        raise Refusal(line, "no valid Python: a null byte or half a character", "save it as plain text")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ast.parse(source)


def _longest(source: str) -> int:
    """The line that an error without a place is most likely about, from 1."""
    lines = source.splitlines() or [""]
    return max(range(len(lines)), key=lambda n: len(lines[n])) + 1


def _limit_literals(tree: ast.Module) -> None:
    """Before anything is quoted or compared: names and integers so long that this alone would take the parent's time."""
    for node in ast.walk(tree):
        names = [getattr(node, field, None) for field in ("id", "attr", "arg", "name", "asname")]
        if any(isinstance(name, str) and len(name) > MAX_NAME for name in names):
            line = getattr(node, "lineno", None) or getattr(getattr(node, "value", None), "lineno", None)
            raise Refusal(line, f"a name of more than {MAX_NAME} characters", "choose shorter names")
        if isinstance(node, ast.Constant) and isinstance(node.value, int) and abs(node.value) > MAX_LITERAL:
            raise refuse(node, "an integer with too many digits", "write a float, such as 1e30")


def _limit_depth(tree: ast.Module) -> None:
    level: list[ast.AST] = [tree]
    line = 1
    for _ in range(MAX_DEPTH):
        level = [child for node in level for child in ast.iter_child_nodes(node)]
        line = next((node.lineno for node in level if isinstance(node, ast.expr | ast.stmt)), line)
    if level:
        raise Refusal(line, f"nested more than {MAX_DEPTH} levels deep", "write it in shorter expressions")


class _WithoutHints(ast.NodeTransformer):
    """Removes type hints: they are not evaluated, so nothing in them can matter."""

    def visit_arg(self, node: ast.arg) -> ast.AST:
        node.annotation = None
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.returns = None
        return self.generic_visit(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        if node.value is None:
            return ast.copy_location(ast.Pass(), node)
        return self.generic_visit(ast.copy_location(ast.Assign([node.target], node.value), node))


def _signature(tree: ast.Module) -> ast.FunctionDef:
    remedy = f"write def {FUNCTION}(state, info):"
    found = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == FUNCTION]
    if not found:
        raise Refusal(None, f"no function {FUNCTION}", remedy)
    function, arguments = found[0], found[0].args
    names = [argument.arg for argument in (*arguments.posonlyargs, *arguments.args)]
    if len(names) != 2 or arguments.vararg or arguments.kwarg or arguments.kwonlyargs or arguments.defaults:
        raise refuse(
            function, f"{FUNCTION}({quoted(arguments)}) does not have the two parameters it is called with", remedy
        )
    return function


def _constant(tree: ast.Module, name: str) -> ast.expr | None:
    """What the module binds to a name."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == name for t in node.targets):
            return node.value
    return None


def _milestones(node: ast.expr | None) -> tuple[str, ...]:
    if node is None:
        return ()
    names = (
        [e.value for e in node.elts if isinstance(e, ast.Constant)] if isinstance(node, ast.Tuple | ast.List) else []
    )
    texts = tuple(name for name in names if isinstance(name, str))
    for text in texts:  # they go to terminals, into pictures and back to the model
        if not text.isprintable() or len(text) > MAX_LABEL:
            raise refuse(
                node, f"a milestone's name is no short plain text: {text[:20]!r}", f"use at most {MAX_LABEL} letters"
            )
    if isinstance(node, ast.Tuple | ast.List) and len(texts) == len(node.elts) and 0 < len(texts) <= MAX_MILESTONES:
        return texts
    raise refuse(
        node,
        f"MILESTONES is no tuple of 1 to {MAX_MILESTONES} texts",
        'write MILESTONES = ("far", "lifted", "placed"), by index',
    )
