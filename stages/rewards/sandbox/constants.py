"""Values that are known without running anything."""

import ast
import math
from collections.abc import Mapping

from stages.rewards.sandbox.allowed import MAX_EXPONENT

Number = int | float
_TOO_LARGE = 2**64


def number(node: ast.expr, names: Mapping[str, Number]) -> Number | None:
    """The number that an expression of numbers and named constants gives; None where it is not one or not known."""
    match node:
        case ast.Constant(value=bool()):
            return None
        case ast.Constant(value=int() | float() as value):
            return value
        case ast.Name(id=name):
            return names.get(name)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            value_or_none = number(operand, names)
            return None if value_or_none is None else -value_or_none
        case ast.BinOp(left=left, op=op, right=right):
            a, b = number(left, names), number(right, names)
            return None if a is None or b is None else _apply(op, a, b)
    return None


def _apply(op: ast.operator, a: Number, b: Number) -> Number | None:
    if abs(a) > _TOO_LARGE or abs(b) > _TOO_LARGE:
        return math.inf
    try:
        match op:
            case ast.Add():
                return a + b
            case ast.Sub():
                return a - b
            case ast.Mult():
                return a * b
            case ast.Div():
                return a / b
            case ast.FloorDiv():
                return a // b
            case ast.Pow() if abs(b) <= MAX_EXPONENT:
                power = a**b
                return power if isinstance(power, int | float) else None
    except (ArithmeticError, ValueError):
        return None
    return None


def module_numbers(tree: ast.Module) -> dict[str, Number]:
    """Numbers that the module binds to a name once and for all: `NEAR = 0.05`."""
    bound: dict[str, Number] = {}
    seen: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.Assign):
            for target in node.targets:
                names = {n.id for n in ast.walk(target) if isinstance(n, ast.Name)}
                value = number(node.value, bound) if isinstance(target, ast.Name) else None
                for name in names:
                    bound.pop(name, None)
                    if value is not None and name not in seen:
                        bound[name] = value
                seen |= names
    return bound
