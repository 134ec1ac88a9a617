"""RestrictedPython's judgement of a program, beside our own rules.

Its policy of names, attributes and statements has been attacked for twenty years; ours is narrower. A program has to pass
both. What RestrictedPython rewrites (guards around attributes and items, checked at run time) is not used: our rules admit
only names from a list, and the list is complete before anything runs.
"""

import ast
import copy

from RestrictedPython import RestrictingNodeTransformer

from stages.rewards.sandbox.refusal import Refusal


class _Policy(RestrictingNodeTransformer):  # type: ignore[misc, unused-ignore]
    def __init__(self) -> None:
        self.found: list[tuple[int | None, str]] = []
        super().__init__()

    def error(self, node: ast.AST, info: str) -> None:
        self.found.append((getattr(node, "lineno", None), info))

    def visit_AugAssign(self, node: ast.AugAssign) -> ast.AST:
        # It refuses `reward[mask] += 1` because it cannot guard it; the rules allow it for variables of a function.
        return self.node_contents_visit(node)


def second_opinion(tree: ast.Module) -> None:
    """
    Raises:
        Refusal: RestrictedPython's first objection.
    """
    policy = _Policy()
    policy.visit(copy.deepcopy(tree))
    if policy.found:
        line, info = policy.found[0]
        raise Refusal(line, info.rstrip(".").replace(";", ","), "leave it out")
