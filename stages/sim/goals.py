"""The goal of a LIBERO task, read from its BDDL file without importing LIBERO."""

import re
from typing import Any

from stages.errors import TaskError
from stages.types import Task


def parse_goal(task: Task) -> tuple[tuple[str, ...], ...]:
    """The predicates of which all have to hold, in the file's order.

    Returns:
        Predicate in small letters, then its arguments: `(("in", "butter_1", "basket_1_contain_region"),)`.

    Raises:
        TaskError: the file cannot be read, or its goal is no conjunction of predicates.
    """
    try:
        text = re.sub(r";.*", "", task.bddl_file.read_text()).lower()
    except OSError as error:
        raise TaskError(f"the task file {task.bddl_file} of {task.id} cannot be read: {error.strerror}") from None
    start = text.find("(:goal")
    try:
        if start < 0:
            raise ValueError("there is no (:goal ...)")
        (goal,) = _expression(re.findall(r"[()]|[^\s()]+", text[start:]))[1:]
        predicates = goal[1:] if goal[0] == "and" else [goal]
        if not predicates or not all(len(p) in (2, 3) and all(isinstance(word, str) for word in p) for p in predicates):
            raise ValueError("expected predicates of one or two names, joined by And")
    except (ValueError, IndexError) as error:
        raise TaskError(
            f"the goal of {task.id} in {task.bddl_file} is not understood: {error or 'brackets do not match'}"
        ) from None
    return tuple(tuple(predicate) for predicate in predicates)


def _expression(tokens: list[str]) -> list[Any]:
    """The nested list of the first bracket; takes its tokens away."""
    if tokens.pop(0) != "(":
        raise ValueError("expected a bracket")
    items: list[Any] = []
    while tokens[0] != ")":
        items.append(_expression(tokens) if tokens[0] == "(" else tokens.pop(0))
    tokens.pop(0)
    return items
