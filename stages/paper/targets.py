"""What each table and figure shows, and which cells it asks for."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stages.errors import UsageError
from stages.paper.cells import Cell, make_cell
from stages.paper.numbers import GROUP_SIZES, OBJECT_TASKS, TABLE_3, TASK_10

# Of every cell: the paper's 50 official states; what is sampled, twice over with different seeds.
PROTOCOL = ("eval.starts=official", "eval.episodes=50", "eval.repeats=2")
# What a cell does not need: results come from its files.
_QUIET = ("eval.videos=0", "train.tensorboard=false", "train.wandb=null")


@dataclass(frozen=True)
class Variant:
    """One row of a table: what its cells set."""

    name: str
    title: str
    overrides: Mapping[str, Any]
    own: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # task -> further overrides, as of table 3


@dataclass(frozen=True)
class Target:
    """One table or figure."""

    name: str
    title: str
    shows: str  # in one or two sentences
    variants: tuple[Variant, ...] = ()
    tasks: tuple[str, ...] = OBJECT_TASKS  # that the documents show
    peers: bool = False  # no variant comes before the others, so the headline names all that have run


def _algo(name: str, title: str) -> Variant:
    return Variant(name, title, {"update.algo": name})


def weights_name(a1: float, a2: float) -> str:
    """`a1=0.3,a2=0.7`, as a variant is called."""
    return f"a1={a1:g},a2={a2:g}"


def _weights(a1: float, a2: float) -> Variant:
    overrides = {"update.algo": "tgrpo", "advantage.weights": "manual", "advantage.a1": a1, "advantage.a2": a2}
    return Variant(weights_name(a1, a2), f"a1 = {a1:g}, a2 = {a2:g}", overrides)


TGRPO = _algo("tgrpo", "TGRPO")
NO_T = _algo("tgrpo_no_t", "TGRPO without T (step level alone)")
NO_S = _algo("tgrpo_no_s", "TGRPO without S (trajectory level alone)")
_BOTH_TEMPERATURES = {"train.eval_temperatures": [0.0, 1.0]}
_STOP_EACH = {"update.algo": "tgrpo", "rollout.stop": "each", **_BOTH_TEMPERATURES}
_STOP_FIRST = {"update.algo": "tgrpo", "rollout.stop": "first", **_BOTH_TEMPERATURES}
_TABLE_3 = {
    task: {"advantage.weights": "manual", "advantage.a1": a1, "advantage.a2": a2}
    for task, (a1, a2) in zip(OBJECT_TASKS, TABLE_3, strict=True)
}
GRID = tuple(_weights(a1, a2) for a1, a2 in TASK_10)

TARGETS: Mapping[str, Target] = {
    target.name: target
    for target in (
        Target(
            "table1",
            "Table 1: ablation of the two advantages",
            "Success on each task of LIBERO-Object after supervised fine-tuning (SFT), after TGRPO, and after TGRPO with one of "
            "its two advantages alone.",
            (TGRPO, NO_T, NO_S),
        ),
        Target(
            "table3",
            "Table 3: the weights a1 and a2 of each task",
            "The paper tunes two weights by hand for each task. Here the same training runs with table 3's pair, with the pair "
            "that the post calls best for most tasks, and with weights that each group gives itself (`advantage.weights: auto`).",
            (
                Variant("table3", "table 3's pair", {"update.algo": "tgrpo"}, _TABLE_3),
                Variant("auto", "auto", {"update.algo": "tgrpo", "advantage.weights": "auto"}),
                _weights(0.3, 0.7),
            ),
            peers=True,
        ),
        Target(
            "fig2",
            "Figure 2: TGRPO beside other methods",
            "Success on each task of LIBERO-Object with SFT, PPO and TGRPO as in the paper, with GRAPE as in the post, and with "
            "GRPO on the 0/1 outcome, REINFORCE and cloning of the successes besides. The same base, rollouts and evaluation for "
            "all; only `update.algo` differs.",
            (
                TGRPO,
                _algo("ppo", "PPO"),
                _algo("grpo", "GRPO, 0/1 outcome"),
                _algo("grape", "GRAPE"),
                _algo("reinforce", "REINFORCE"),
                _algo("sft", "cloning of successes"),
            ),
        ),
        Target(
            "fig3",
            "Figure 3: one task, different weights",
            "Success during training on task 10 with different pairs of weights.",
            GRID,
            (OBJECT_TASKS[9],),
            peers=True,
        ),
        Target(
            "fig4",
            "Figure 4: log-probability and entropy during training",
            "Mean log-probability of the sampled action tokens and entropy of the policy on task 6, with both advantages and "
            "with either alone.",
            (TGRPO, NO_T, NO_S),
            (OBJECT_TASKS[5],),
        ),
        Target(
            "fig5",
            "Figure 5: successes after TGRPO",
            "Stills of one successful episode for each task: the first official state on which the trained policy succeeds.",
            (TGRPO,),
            OBJECT_TASKS[:3],
        ),
        Target(
            "fig6",
            "Figure 6: the pairs of weights, analysed",
            "Principal components and hierarchical clustering of table 3's ten pairs, and what section A.2 says of them, "
            "computed again. The same for the pairs that figure 7 trains with, as far as these have run.",
            GRID,
            (OBJECT_TASKS[9],),
            peers=True,
        ),
        Target(
            "fig7",
            "Figure 7: success over the plane of weights",
            "Success on task 10 as a surface over (a1, a2), from the pairs of table 3 and those that section A.2 names.",
            GRID,
            (OBJECT_TASKS[9],),
            peers=True,
        ),
        Target(
            "groupsize",
            "Group size",
            "Success with 2, 4 and 8 trajectories in a group; the number of groups stays, so that a larger group costs more.",
            tuple(
                Variant(f"N={n}", f"N = {n}", {"update.algo": "tgrpo", "rollout.envs": n}) for n in sorted(GROUP_SIZES)
            ),
            peers=True,
        ),
        Target(
            "suites",
            "The four suites of LIBERO",
            "Mean success over the tasks of each suite, with SFT, GRAPE and TGRPO.",
            (TGRPO, _algo("grape", "GRAPE")),
        ),
        Target(
            "proof",
            "Does TGRPO improve a policy?",
            "From a base of middling success, TGRPO trains on sampled start states; the 50 official ones, on which both ends are "
            "judged, it never sees. Greedy, and sampled at temperature 1 with two seeds. Beside it, all else equal, the paper's "
            "rule that the first success ends all trajectories of a group.",
            (
                Variant("each", "TGRPO, every trajectory to its own end", _STOP_EACH),
                Variant("first", "TGRPO, the first success ends all (the paper)", _STOP_FIRST),
            ),
        ),
    )
}


def find_target(name: str) -> Target:
    """A target by its name.

    Raises:
        UsageError: there is none of this name.
    """
    if name not in TARGETS:
        raise UsageError(f"the paper has no {name!r} here; choose one of {', '.join(TARGETS)}")
    return TARGETS[name]


def plan(
    target: Target, profile: Path, tasks: Sequence[str], seeds: Sequence[int], options: Sequence[str], root: Path
) -> list[tuple[Variant, Cell]]:
    """The cells of a target in the order in which they should run: a seed of every task before the next seed.

    Within a seed, tasks whose base exists come first, and all variants of a task follow each other, so that whatever has
    run is a table with fewer tasks or seeds.

    Raises:
        ParamsError: an option that params do not know.
        UsageError: an option for what the target's methods set, or several tasks for a figure of one.
    """
    if target.name == "fig7" and len(tasks) > 1:
        raise UsageError(f"fig7 is a surface for one task, but {len(tasks)} are given ({', '.join(tasks)}); name one")
    _refuse_what_is_set(target, tasks, options)
    cells = []
    for seed in seeds:
        for task in tasks:
            for variant in target.variants:
                overrides = {**variant.overrides, **variant.own.get(task, {})}
                given = [*PROTOCOL, *options, *_QUIET]
                cells.append((variant, make_cell(profile, variant.name, overrides, given, task, seed, root)))
    place = {task: index for index, task in enumerate(tasks)}
    return sorted(cells, key=lambda pair: (seeds.index(pair[1].seed), pair[1].base.made, place[pair[1].task]))


def _refuse_what_is_set(target: Target, tasks: Sequence[str], options: Sequence[str]) -> None:
    """An option that a cell would override says one thing and does another."""
    by_variants = {
        key
        for variant in target.variants
        for overrides in (variant.overrides, *(variant.own.get(task, {}) for task in tasks))
        for key in overrides
    }
    for option in options:
        key = option.partition("=")[0].strip()
        if key == "task":
            raise UsageError(f"--set {option}: name tasks with --tasks")
        if key in by_variants:
            raise UsageError(f"--set {option}: {target.name} compares methods that set {key} themselves; leave it out")
