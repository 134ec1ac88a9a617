"""From the text of a program to code that may run in the sandbox, or to a refusal with its line."""

import ast
from dataclasses import dataclass
from types import CodeType

from stages.rewards.errors import RewardError
from stages.rewards.interface import FUNCTION
from stages.rewards.sandbox.allowed import MAX_DEPTH, MAX_MILESTONES, MAX_SOURCE
from stages.rewards.sandbox.names import collect, no_recursion
from stages.rewards.sandbox.refusal import Refusal, refuse
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
        tree = _WithoutHints().visit(tree)
        function = _signature(tree)
        vectorised, milestones = _constant(tree, "VECTORISED"), _constant(tree, "MILESTONES")
        _milestones(milestones)
        if vectorised and not (isinstance(vectorised, ast.Constant) and isinstance(vectorised.value, bool)):
            raise refuse(vectorised, "VECTORISED is neither True nor False", "write VECTORISED = True, or leave it out")
        _without(tree, milestones)
        names = collect(tree)
        Rules(names).visit(tree)
        no_recursion(names)
        second_opinion(tree)
        return CheckedProgram(
            compile(tree, FILENAME, "exec", dont_inherit=True),
            isinstance(vectorised, ast.Constant) and bool(vectorised.value),
            function.lineno,
            source.count("\n") + 1,
        )
    except Refusal as refusal:
        raise RewardError(path, refusal.line, refusal.found, refusal.remedy) from None
    except SyntaxError as error:
        raise RewardError(path, error.lineno, f"no valid Python: {error.msg}", "mend the syntax") from None
    except (RecursionError, MemoryError):
        raise RewardError(path, None, "nested too deeply", "write it in shorter expressions") from None


def milestone_names(source: str) -> tuple[str, ...]:
    """`MILESTONES` of a program by index, read without running it; empty where it gives none."""
    try:
        node = _constant(_WithoutHints().visit(_parse(source)), "MILESTONES")
        return _milestones(node)
    except (Refusal, SyntaxError, RecursionError, MemoryError):
        return ()


def _parse(source: str) -> ast.Module:
    if len(source) > MAX_SOURCE:
        raise Refusal(None, f"{len(source)} characters long", f"a program has at most {MAX_SOURCE}")
    try:
        return ast.parse(source)
    except ValueError as error:  # a null byte
        raise Refusal(None, f"no valid Python: {error}", "save it as plain text") from None


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
            function, f"{FUNCTION}({ast.unparse(arguments)}) does not have the two parameters it is called with", remedy
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
    if isinstance(node, ast.Tuple | ast.List) and len(texts) == len(node.elts) and 0 < len(texts) <= MAX_MILESTONES:
        return texts
    raise refuse(
        node,
        f"MILESTONES is no tuple of 1 to {MAX_MILESTONES} texts",
        'write MILESTONES = ("far", "lifted", "placed"), by index',
    )


def _without(tree: ast.Module, milestones: ast.expr | None) -> None:
    """Takes the names of the milestones out of the tree: they are labels, and may hold any character."""
    if isinstance(milestones, ast.Tuple | ast.List):
        for index, element in enumerate(milestones.elts):
            milestones.elts[index] = ast.copy_location(ast.Constant(""), element)
