"""Who is called what in a program, and who calls whom.

A name is a function, a module or a value, for the whole program. Functions are called and never passed around, so the graph
of calls that stands in the text is the true one, and a program without cycles in it cannot recurse.
"""

import ast
from collections.abc import Iterator
from dataclasses import dataclass, field

from stages.rewards.sandbox.allowed import BUILTINS, CATCHABLE, MATH_FUNCTIONS, MATH_VALUES, MAX_CALLS
from stages.rewards.sandbox.constants import Number, module_numbers
from stages.rewards.sandbox.refusal import refuse

Scope = ast.FunctionDef | ast.Lambda


@dataclass
class Names:
    """Of one program, hints removed."""

    modules: dict[str, str] = field(default_factory=dict)  # name -> numpy or math
    math: dict[str, str] = field(default_factory=dict)  # name -> what it is of the math module
    functions: dict[str, Scope] = field(default_factory=dict)
    values: dict[str, int] = field(default_factory=dict)  # name -> the line that binds it first
    numbers: dict[str, Number] = field(default_factory=dict)  # those that are known numbers


def collect(tree: ast.Module) -> Names:
    """Reads all bindings.

    Raises:
        Refusal: an import or a binding that is not allowed.
    """
    names = Names(numbers=module_numbers(tree))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            _import(node, names, at_top=node in tree.body)
    lambdas: set[ast.Name] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            _function(node, node.name, names)
        elif isinstance(node, ast.Assign) and isinstance(node.value, ast.Lambda):
            if len(node.targets) != 1 or not isinstance(node.targets[0], ast.Name):
                raise refuse(node, "a lambda is bound to more than one name", "write a `def`")
            lambdas.add(node.targets[0])
            _function(node.value, node.targets[0].id, names, node)
    for node, name in _bindings(tree, lambdas):
        _value(node, name, names)
    return names


def locals_of(scope: Scope) -> set[str]:
    """Names that a function binds itself, comprehensions and nested functions included."""
    return {name for _, name in _bindings(scope, set())}


def _bindings(tree: ast.AST, lambdas: set[ast.Name]) -> Iterator[tuple[ast.AST, str]]:
    """Where a name is bound to a value; `lambdas` are bound to functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.arg):
            yield node, node.arg
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and node not in lambdas:
            yield node, node.id


def _import(node: ast.Import | ast.ImportFrom, names: Names, at_top: bool) -> None:
    remedy = "a program may have `import numpy as np`, `import math` and `from math import sqrt`, at its top"
    if not at_top:
        raise refuse(node, "an import inside other code", remedy)
    for alias in node.names:
        name = alias.asname or alias.name
        if isinstance(node, ast.Import):
            allowed = {"numpy": ("numpy", "np"), "math": ("math",)}.get(alias.name, ())
            if name not in allowed:
                raise refuse(node, f"imports {alias.name!r}" + (f" as {name!r}" if alias.asname else ""), remedy)
            names.modules[name] = alias.name
        elif node.module == "math" and node.level == 0 and alias.name in MATH_FUNCTIONS | MATH_VALUES:
            if alias.asname:
                _free(node, name, names)
            names.math[name] = alias.name
        else:
            hints = node.module in ("typing", "__future__", "collections.abc")
            raise refuse(
                node,
                f"imports {alias.name!r} from {node.module or '.'!r}",
                "leave it out; hints are not evaluated, so they need no import" if hints else remedy,
            )


def _function(scope: Scope, name: str, names: Names, node: ast.AST | None = None) -> None:
    at = node or scope
    _free(at, name, names)
    if name in names.functions:
        raise refuse(at, f"defines {name!r} a second time", "give each function a name of its own")
    names.functions[name] = scope


def _value(node: ast.AST, name: str, names: Names) -> None:
    _free(node, name, names)
    if name in names.functions:
        raise refuse(node, f"{name!r} is a function and is bound to a value too", "use two names")
    names.values.setdefault(name, getattr(node, "lineno", 1))


def _free(node: ast.AST, name: str, names: Names) -> None:
    if name in names.modules or name in names.math:
        raise refuse(node, f"binds {name!r}, which is imported", "use another name")
    if name in BUILTINS or name in CATCHABLE:
        raise refuse(node, f"binds {name!r}, which Python defines", "use another name")
    if name.startswith("_") and name != "_":
        raise refuse(node, f"the name {name!r} begins with an underscore", f"call it {name.strip('_') or 'value'!r}")


def no_recursion(names: Names) -> None:
    """
    Raises:
        Refusal: a function that calls itself, by way of others too.
    """
    calls = {
        caller: {
            node.id: node
            for node in ast.walk(scope)
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and node.id in names.functions
        }
        for caller, scope in names.functions.items()
    }
    done: set[str] = set()
    for first in calls:
        above = [first] if first not in done else []
        waiting = [iter(calls[name].items()) for name in above]
        while above:
            called, node = next(waiting[-1], (None, None))
            if called is None or node is None:
                done.add(above.pop())
                waiting.pop()
            elif called in above:
                raise refuse(node, f"{called!r} calls itself", "write a for loop over something of known length")
            elif called not in done:
                above.append(called)
                waiting.append(iter(calls[called].items()))
                if len(above) > MAX_CALLS:
                    raise refuse(
                        node, f"functions that call each other more than {MAX_CALLS} deep", "call fewer in a row"
                    )
