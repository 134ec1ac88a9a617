"""How the checks of the syntax speak to each other."""

import ast

_LONGEST = 200  # characters that are quoted of a program


class Refusal(Exception):
    """A place in a program that is not allowed: its line, what is there, what to write instead."""

    def __init__(self, line: int | None, found: str, remedy: str) -> None:
        super().__init__(found)
        self.line, self.found, self.remedy = line, shortened(found), shortened(remedy)


def refuse(node: ast.AST, found: str, remedy: str) -> Refusal:
    return Refusal(getattr(node, "lineno", None), found, remedy)


def quoted(node: ast.AST) -> str:
    """The text of an expression, or what kind it is where it cannot be written."""
    try:
        return shortened(ast.unparse(node))
    except (ValueError, RecursionError, MemoryError):
        return type(node).__name__


def shortened(text: str) -> str:
    """A program may hold words of any length; a message may not."""
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
