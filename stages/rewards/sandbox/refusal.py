"""How the checks of the syntax speak to each other."""

import ast


class Refusal(Exception):
    """A place in a program that is not allowed: its line, what is there, what to write instead."""

    def __init__(self, line: int | None, found: str, remedy: str) -> None:
        super().__init__(found)
        self.line, self.found, self.remedy = line, found, remedy


def refuse(node: ast.AST, found: str, remedy: str) -> Refusal:
    return Refusal(getattr(node, "lineno", None), found, remedy)
