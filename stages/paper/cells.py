"""A cell: one training run and the evaluations at its ends, named by everything that can change their outcome.

Two tables that ask for the same run ask for the same cell. Its name holds a digest of the resolved params and of the base
checkpoint, so that a changed default makes another cell and never passes off an old result as a new one.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from stages.errors import UsageError
from stages.paper.bases import Base
from stages.params import Params, load_params

Item = TypeVar("Item", str, int)

# What decides how a run looks or whether it waits, never what it computes.
_WITHOUT_EFFECT = (
    "loop",
    "gen_reward.model",  # cells train on the built-in reward
    "gen_reward.max_tokens",
    "gen_reward.temperature",
    "gen_reward.rounds",
    "gen_reward.timeout_s",
    "gen_reward.max_retries",
    "demos.workers",
    "sim.timeout_s",
    "sim.max_restarts",
    "sim.egl_device",
    "policy.base",  # its digest counts
    "eval.videos",
    "eval.temperature",  # train.eval_temperatures decide
    "train.tensorboard",
    "train.wandb",
)


@dataclass(frozen=True)
class Cell:
    """One training run of one variant, on one task with one seed."""

    variant: str  # a short name, such as `tgrpo_no_t` or `a1=10,a2=1`; the params say what it means
    params: Params  # complete: the profile, the options of the command, and the variant's own
    base: Base

    @property
    def task(self) -> str:
        return self.params.task

    @property
    def seed(self) -> int:
        return self.params.seed

    @property
    def name(self) -> str:
        """`libero_object-6_tgrpo_s0_1a2b3c4d`: its folder, and the name of its DVC experiment."""
        algo = self.params.update.algo.replace("_", "-")
        return f"{self.task.replace('/', '-')}_{algo}_s{self.seed}_{self.key[:8]}"

    @property
    def key(self) -> str:
        """SHA-256, 64 hex digits, of what can change the result."""
        relevant = self.params.model_dump(mode="json")
        if not self.base.made:  # neither demonstrations nor sft took part
            relevant.pop("demos")
            relevant.pop("sft")
        for algo in ("ppo", "grpo", "grape"):  # what only these have
            if self.params.update.algo != algo:
                relevant["update"].pop(algo)
        # All that counts of both ways to write a weight is the pair that they come to.
        relevant["advantage"] |= {"a1": 0.0, "a2": 0.0, "per_task": self.params.advantage.weights_of(self.task)}
        for dotted in _WITHOUT_EFFECT:
            *parents, last = dotted.split(".")
            section = relevant
            for parent in parents:
                section = section.get(parent, {})
            section.pop(last, None)
        text = json.dumps({"params": relevant, "base": self.base.identity}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


def make_cell(
    profile: Path, variant: str, overrides: Mapping[str, Any], options: Sequence[str], task: str, seed: int, root: Path
) -> Cell:
    """A cell from the profile's params, the command's `--set` options, and the variant's own params, in this order.

    Args:
        overrides: dotted key -> value. `advantage.a1` and `.a2` come before the profile's weights for single tasks.
        seed: of training; the profile's own is that of a base that has to be made.
        root: where bases are made that do not exist yet (`data/paper`).

    Raises:
        ParamsError: see `load_params`.
    """
    own = [f"{key}={json.dumps(value)}" for key, value in overrides.items()]
    params = load_params(profile, [*options, *own, f"task={task}"])
    if "advantage.a1" in overrides:
        params = params.model_copy(update={"advantage": params.advantage.model_copy(update={"per_task": {}})})
    return Cell(variant, params.model_copy(update={"seed": seed}), Base.of(params, root))


def parse_tasks(text: str) -> tuple[str, ...]:
    """`6,7` or `libero_object/6,libero_goal/1` as task ids; a bare number is one of LIBERO-Object.

    Raises:
        UsageError: nothing given, a task twice. TaskError: no such task.
    """
    from stages.sim.tasks import load_task

    names = [part if "/" in part else f"libero_object/{part}" for part in _parts(text, "--tasks", "6,7")]
    for name in names:
        load_task(name)
    return tuple(_once(names, f"--tasks {text}"))


def parse_numbers(text: str, option: str) -> tuple[int, ...]:
    """`0,1,2` as numbers.

    Raises:
        UsageError: nothing given, a number twice, or something that is no whole number from 0.
    """
    parts = _parts(text, option, "0,1,2")
    wrong = [part for part in parts if not part.isdecimal()]
    if wrong:
        raise UsageError(f"{option} {text}: {wrong[0]!r} is no whole number; expected numbers such as 0,1,2")
    return tuple(_once([int(part) for part in parts], f"{option} {text}"))


def _parts(text: str, option: str, example: str) -> list[str]:
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts:
        raise UsageError(f"{option} names nothing; expected a list such as {example}")
    return parts


def _once(items: list[Item], given: str) -> list[Item]:
    if len(set(items)) < len(items):
        raise UsageError(f"{given} names something twice, which would count it twice; name each once")
    return items


def distinct(cells: Iterable[Cell]) -> list[Cell]:
    """The cells in their order, each once."""
    return list({cell.key: cell for cell in cells}.values())
