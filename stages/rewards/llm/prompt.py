"""The prompt: a long part that is the same for every task and is marked for the prompt cache, then the task's part."""

import ast
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stages.rewards import interface
from stages.rewards.interface import Context
from stages.rewards.llm.libero_source import relevant_source
from stages.rewards.sandbox import allowed

STEPS_PER_SECOND = 20
_TEMPLATE = Path(__file__).with_name("prompt.md")
_FINDINGS_LIMIT = 8_000  # characters


@dataclass(frozen=True)
class GenerationRequest:
    """A task for which a reward program is wanted."""

    language: str  # the instruction, as the policy reads it
    bddl: str  # text of the task's BDDL file
    context: Context  # names its task
    libero: Path  # folder of the installed package `libero.libero`, from whose source the prompt quotes
    initial_pos: Mapping[str, Sequence[float]] = field(
        default_factory=dict
    )  # m, of objects and places in one start state


def system_prompt() -> list[dict[str, Any]]:
    """The constant part: role, interface, requirements, sandbox, verification. Byte-equal for all tasks."""
    return [{"type": "text", "text": constant_part(), "cache_control": {"type": "ephemeral"}}]


def first_message(request: GenerationRequest) -> dict[str, Any]:
    """The task's part.

    Raises:
        LlmError: the installed LIBERO's source is not where it should be.
    """
    return {"role": "user", "content": [{"type": "text", "text": task_part(request)}]}


def findings_message(findings: str) -> dict[str, Any]:
    """The answer to a program that did not pass."""
    if len(findings) > _FINDINGS_LIMIT:
        findings = findings[:_FINDINGS_LIMIT].rstrip() + "\n(more findings left out)"
    text = (
        "The program was not accepted. Findings:\n\n"
        f"{findings.strip()}\n\n"
        "Say briefly what was wrong, then write the whole program again, in exactly one ```python block."
    )
    return {"role": "user", "content": [{"type": "text", "text": text}]}


@functools.cache
def constant_part() -> str:
    text = _TEMPLATE.read_text(encoding="utf-8")
    return text.replace("{interface}", interface_text()).replace("{allowed}", allowed_text())


@functools.cache
def interface_text() -> str:
    """What a program reads, from the source of `stages.rewards.interface`: its docstring and its named tuples."""
    source = Path(interface.__file__).read_text(encoding="utf-8")
    tree = ast.parse(source)
    types = [
        ast.get_source_segment(source, node) or ""
        for node in tree.body
        if isinstance(node, ast.ClassDef) and any(ast.unparse(base) == "NamedTuple" for base in node.bases)
    ]
    docstring = ast.get_docstring(tree) or ""
    return "\n\n\n".join([f'"""{docstring}\n"""', *types])


def allowed_text() -> str:
    """What a program may call, from the sandbox's own lists."""
    kinds = {
        "Built-in functions": allowed.BUILTINS,
        "Methods": allowed.METHODS,
        "Functions of math": allowed.MATH_FUNCTIONS,
        "Functions of numpy": allowed.NUMPY_FUNCTIONS,
    }
    return "\n".join(f"- {kind} that may be called: {', '.join(sorted(names))}." for kind, names in kinds.items())


def task_part(request: GenerationRequest) -> str:
    """Names, ranges, goals and places of the task, its BDDL, and the source that judges its goal."""
    context = request.context
    where = {name: _vector(pos) for name, pos in request.initial_pos.items()}
    joints = [
        f"{name}: from {lower:.4g} to {upper:.4g}"
        for name, (lower, upper) in zip(context.joint_names, context.joint_ranges, strict=True)
    ]
    parts = [
        f"# The task: {request.language}",
        f"LIBERO's `{context.task}`. An episode without success ends after {context.max_steps} steps,"
        f" {STEPS_PER_SECOND} per second.",
        _listed("Keys of `state.objects`", [_placed(name, where) for name in context.object_names]),
        _listed("Keys of `state.joints`, with their ranges (m or rad)", joints),
        _listed("Keys of `state.places`", [_placed(name, where) for name in context.place_names]),
        _listed("`state.goals`, all of which must hold", [" ".join(goal) for goal in context.goals]),
        f"`state.target` is {context.target!r}. `state.key_poses` has {len(context.key_poses)} entries.",
    ]
    if where:
        parts.append(
            "Positions are those of one start state, in metres; objects and fixtures start elsewhere each time."
        )
    parts += [
        "# Its BDDL",
        _block("lisp", request.bddl),
        "# LIBERO's source: how the goal is judged",
        _block("python", relevant_source(request.libero, request.bddl, context.goals)),
        f"Write the reward program for: {request.language}",
    ]
    return "\n\n".join(parts)


def _placed(name: str, where: Mapping[str, str]) -> str:
    return f"{name}, at {where[name]}" if name in where else name


def _vector(pos: Sequence[float]) -> str:
    return "(" + ", ".join(f"{value:.3f}" for value in pos) + ")"


def _listed(title: str, lines: Sequence[str]) -> str:
    return f"{title}:\n" + "\n".join(f"- {line}" for line in lines) if lines else f"{title}: none."


def _block(language: str, text: str) -> str:
    return f"```{language}\n{text.strip()}\n```"
