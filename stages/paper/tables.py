"""The tables of a document, as lines of Markdown: ours beside the documents' own, every run listed."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from stages.paper.cells import Cell
from stages.paper.numbers import (
    A2_CLAIMS,
    GROUP_SIZES,
    OBJECT_MEANS,
    SUITE_AVERAGES,
    SUITE_RATES,
    SUITES,
    TABLE_1,
    TABLE_3,
    TASK_10,
    Reported,
    task_number,
)
from stages.paper.results import Result
from stages.paper.statistics import (
    Paired,
    Rate,
    base_rate,
    best_rate,
    mean_over_tasks,
    paired,
    paired_methods,
    spread,
    trained_rate,
)
from stages.paper.targets import Variant
from stages.paper.weights import clusters, pair_statistics, pca, rounds_to

BASE = "base"  # the row of the checkpoint that every run starts from
NOT_RUN = "not run"


@dataclass(frozen=True)
class Status:
    """A cell that a table asked for, and what is known of it."""

    variant: Variant
    cell: Cell
    result: Result | None
    failure: str | None  # why it has none, where it was tried


def task_title(task: str) -> str:
    """`7 (libero_object/6)`, the paper's number first; only the id for a task that it does not have."""
    number = task_number(task)
    return f"{number} ({task})" if number else task


def results_of(statuses: Iterable[Status], variant: str | None = None) -> list[Result]:
    """The results there are, of one variant or of all."""
    return [s.result for s in statuses if s.result is not None and variant in (None, s.variant.name)]


def temperatures(statuses: Iterable[Status]) -> list[float]:
    """At which the results were evaluated; greedy first."""
    return sorted({outcome.temperature for result in results_of(statuses) for outcome in result.before})


def acting(temperature: float) -> str:
    return "greedy" if temperature == 0 else f"sampled at temperature {temperature:g}"


def percent(rate: float | None) -> str:
    return NOT_RUN if rate is None else f"{rate:.1%}"


def short(rate: Rate | None) -> str:
    """`84% (42/50)`."""
    if rate is None:
        return NOT_RUN
    lost = f", {rate.crashes} crashed" if rate.crashes else ""
    return f"{rate.rate:.0%} ({rate.successes}/{rate.episodes}{lost})"


def full(rate: Rate | None) -> str:
    """`42/50 = 84% (71% to 92%)`, with the 95% Wilson interval."""
    if rate is None:
        return NOT_RUN
    lost = f", {rate.crashes} crashed" if rate.crashes else ""
    return f"{rate.successes}/{rate.episodes} = {rate.rate:.0%} ({rate.low:.0%} to {rate.high:.0%}){lost}"


def p_value(p: float) -> str:
    return f"{p:.3f}" if p >= 0.001 else f"{p:.0e}"


def counted(count: int, thing: str) -> str:
    """`1 run`, `2 runs`."""
    return f"{count} {thing}{'' if count == 1 else 's'}"


def points(difference: float) -> str:
    return f"{100 * difference:+.1f}"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A Markdown table with an empty line after it."""
    lines = ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
    return [*lines, *("| " + " | ".join(row) + " |" for row in rows), ""]


def rates_by_task(
    statuses: Sequence[Status], variants: Sequence[Variant], tasks: Sequence[str], temperature: float
) -> list[str]:
    """A row a task, a column a method; the paper's number beside ours where it has one."""
    everything = results_of(statuses)

    def columns(task: str) -> list[Rate | None]:
        own = [trained_rate(results_of(statuses, variant.name), task, temperature) for variant in variants]
        return [base_rate(everything, task, temperature), *own]

    names = [BASE, *(variant.name for variant in variants)]
    by_task = {task: columns(task) for task in tasks}
    rows = []
    for task, rates in by_task.items():
        cells = [
            _beside(short(rate), reported(name, task) if temperature == 0 else None)
            for name, rate in zip(names, rates, strict=True)
        ]
        rows.append([task_title(task), *cells])
    ran = [task for task, rates in by_task.items() if all(rate is not None for rate in rates)]
    means = []
    for column, name in enumerate(names):
        ours = mean_over_tasks([by_task[task][column] for task in ran]) if ran else None
        theirs = [found for task in ran if (found := reported(name, task)) is not None]
        mean = Reported(sum(one.rate for one in theirs) / len(ran), "") if theirs and len(theirs) == len(ran) else None
        means.append(_beside(percent(ours), mean if temperature == 0 else None))
    rows.append([f"**mean of {counted(len(ran), 'task')} with all columns**", *means])
    if temperature == 0:
        whole = [OBJECT_MEANS.get(name) for name in names]
        rows.append(["documents' mean of all ten", *(f"{one.rate:.1%}" if one else "" for one in whole)])
    lines = table(["task", "SFT (the base)", *(variant.title for variant in variants)], rows)
    return [f"## Success, {acting(temperature)}", "", *lines]


def reported(variant: str, task: str) -> Reported | None:
    """What the paper's table 1 has for a method on a task."""
    number = task_number(task)
    return TABLE_1[variant][number - 1] if variant in TABLE_1 and number else None


def _beside(ours: str, theirs: Reported | None) -> str:
    return f"{ours}; paper {theirs.rate:.0%}" if theirs else ours


def paired_table(statuses: Sequence[Status], variants: Sequence[Variant]) -> list[str]:
    """Base against trained, all tasks and seeds of a method pooled, a line for each temperature."""
    rows = []
    for variant in variants:
        for temperature in temperatures(statuses):
            if pooled := paired(results_of(statuses, variant.name), temperature):
                rows.append([variant.title, acting(temperature), *_paired_cells(pooled)])
    if not rows:
        return []
    header = [
        "method",
        "acting",
        "runs",
        "pairs",
        "base",
        "trained",
        "rise, points (95%)",
        "only base : only trained",
        "McNemar p",
        "states worse : better",
        "sign test p",
    ]
    return [
        "## Base against trained, on the same states and seeds, all runs pooled",
        "",
        *table(header, rows),
        "McNemar's test takes every pair as independent, which seeds on one state are not; the sign test counts each start "
        "state of a task once.",
        "",
    ]


def methods_table(statuses: Sequence[Status], variants: Sequence[Variant]) -> list[str]:
    """The first method against each of the others, where both have run with one task and seed."""
    first, *others = variants
    rows = []
    for variant in others:
        for temperature in temperatures(statuses):
            pooled = paired_methods(results_of(statuses, variant.name), results_of(statuses, first.name), temperature)
            if pooled:
                rows.append([variant.title, acting(temperature), *_paired_cells(pooled)])
    header = [
        "other method",
        "acting",
        "runs",
        "pairs",
        "other",
        first.title,
        "difference, points (95%)",
        "only other : only this",
        "McNemar p",
        "states worse : better",
        "sign test p",
    ]
    return [f"## {first.title} against the others, both trained", "", *table(header, rows)] if rows else []


def spread_table(statuses: Sequence[Status], variants: Sequence[Variant]) -> list[str]:
    """Whether the methods differ at all, where three or more have run with one task and seed."""
    ran = [found for variant in variants if (found := results_of(statuses, variant.name))]
    rows = [
        [
            acting(temperature),
            str(of_all.methods),
            str(of_all.runs),
            str(of_all.episodes),
            f"{percent(of_all.lowest)} to {percent(of_all.highest)}",
            p_value(of_all.p),
        ]
        for temperature in temperatures(statuses)
        if len(ran) > 2 and (of_all := spread(ran, temperature))
    ]
    if not rows:
        return []
    header = ["acting", "methods", "runs of each", "episodes of each", "success, lowest to highest", "p"]
    return [
        "## Do the trained policies differ at all?",
        "",
        *table(header, rows),
        "p: how often success would spread at least as much if methods were exchanged within each start state, so if none were "
        "better than another (a permutation test). Another training seed may spread otherwise.",
        "",
    ]


def _paired_cells(pooled: Paired) -> list[str]:
    n = pooled.pairs
    return [
        str(pooled.runs),
        str(n),
        f"{(pooled.both + pooled.only_base) / n:.1%}",
        f"{(pooled.both + pooled.only_trained) / n:.1%}",
        f"{points(pooled.rise)} ({points(pooled.low)} to {points(pooled.high)})",
        f"{pooled.only_base} : {pooled.only_trained}",
        p_value(pooled.p),
        f"{pooled.states_worse} : {pooled.states_better}",
        p_value(pooled.p_states),
    ]


def best_of_table(statuses: Sequence[Status], variant: Variant, tasks: Sequence[str]) -> list[str]:
    """What the paper's own protocol makes of the same runs, so that the two can be told apart."""
    results = results_of(statuses, variant.name)
    rows = []
    for task in tasks:
        runs = [result for result in results if result.task == task]
        if len(runs) < 2:
            continue
        all_runs, best = trained_rate(runs, task, 0.0), best_rate(runs, task, 0.0)
        rows.append([task_title(task), str(len(runs)), short(all_runs), short(best)])
    if not rows:
        return []
    lines = table(["task", "runs", "all runs", "the best of them"], rows)
    return [
        f"## {variant.title} by the paper's protocol: the best of several runs, greedy",
        "",
        "Chosen by the very episodes that it is reported on, so biased upwards; not used anywhere above.",
        "",
        *lines,
    ]


def runs_table(statuses: Sequence[Status]) -> list[str]:
    """Every cell that has run, and what it took."""
    shown = temperatures(statuses)
    rows = []
    for status in statuses:
        result = status.result
        if result is None:
            continue
        cells = []
        for temperature in shown:
            ends = result.outcomes(temperature)
            cells += [full(Rate.of([end])) for end in ends] if ends else [NOT_RUN, NOT_RUN]
        minutes = [f"{result.train_seconds / 60:.1f}", f"{result.evaluation_seconds / 60:.1f}"]
        ending = f"{result.iterations}, {result.ending}; {result.kept}"
        rows.append([status.variant.title, task_title(result.task), str(result.seed), *cells, ending, *minutes])
    header = ["method", "task", "seed"]
    for temperature in shown:
        header += [f"base, {acting(temperature)}", f"trained, {acting(temperature)}"]
    header += ["iterations, ending; checkpoint kept", "training, minutes", "evaluation, minutes"]
    return ["## Every run", "", *(table(header, rows) if rows else ["None has run.", ""])]


def missing(statuses: Sequence[Status]) -> list[str]:
    """What was asked for and has no result, and why; the seeds of a method on a task in one line."""
    seeds: dict[tuple[str, str, str], list[int]] = {}
    for status in statuses:
        if status.result is None:
            why = f"failed: {status.failure}" if status.failure else NOT_RUN
            seeds.setdefault((status.variant.title, status.cell.task, why), []).append(status.cell.seed)
    lines = [
        f"- {title}, task {task_title(task)}, {'seeds' if len(found) > 1 else 'seed'} {', '.join(map(str, found))}: {why}"
        for (title, task, why), found in seeds.items()
    ]
    return ["## Asked for and not run", "", *lines, ""] if lines else []


def disagreements(statuses: Sequence[Status]) -> list[str]:
    """Greedy evaluations of one base that differ, which would mean that an evaluation does not repeat itself."""
    seen: dict[tuple[str, str], set[tuple[tuple[str, int, bool | None], ...]]] = {}
    for result in results_of(statuses):
        ends = result.outcomes(0.0)
        if ends is not None:
            seen.setdefault((result.task, str(result.base["identity"])), set()).add(ends[0].episodes)
    lines = [
        f"- Task {task_title(task)}: the greedy evaluations of one base differ between runs ({len(kinds)} outcomes); "
        "the first is shown."
        for (task, _), kinds in seen.items()
        if len(kinds) > 1
    ]
    return ["## Not as it should be", "", *lines, ""] if lines else []


def weights_table(tasks: Sequence[str]) -> list[str]:
    """Table 3 as the paper has it."""
    rows = [
        [task_title(task), f"{TABLE_3[number - 1][0]:g}", f"{TABLE_3[number - 1][1]:g}"]
        for task in tasks
        if (number := task_number(task)) is not None
    ]
    return [
        "## The paper's weights",
        "",
        "`params/openvla-7b.yaml` ships them as `advantage.per_task`.",
        "",
        *table(["task", "a1 (of S)", "a2 (of T)"], rows),
    ]


def grid_table(statuses: Sequence[Status], variants: Sequence[Variant], tasks: Sequence[str]) -> list[str]:
    """Success for each pair of weights, with what the paper says of the pair on its task 10."""
    rows = []
    for variant, said in zip(variants, TASK_10.values(), strict=True):
        rates = [trained_rate(results_of(statuses, variant.name), task, 0.0) for task in tasks]
        rows.append([variant.title, *(full(rate) for rate in rates), said])
    base = [full(base_rate(results_of(statuses), task, 0.0)) for task in tasks]
    header = ["weights", *(f"task {task_title(task)}, greedy" for task in tasks), "the paper, task 10"]
    return ["## Success by weights", "", *table(header, [["SFT (the base)", *base, "92% (table 1)"], *rows])]


def claims_table() -> list[str]:
    """What section A.2 says of table 3's pairs, and what they come to."""
    found = pair_statistics(TABLE_3)
    rows = [
        [name, f"{claim:.2f}", f"{found[name]:.3f}", "yes" if rounds_to(found[name], claim) else "**no**"]
        for name, claim in A2_CLAIMS.items()
    ]
    rest = [pair for pair in TABLE_3 if pair != (10, 5)]
    without = pair_statistics(rest)["Pearson r"]
    parts = pca(TABLE_3)
    groups = "; ".join(" ".join(f"({a1:g}, {a2:g})" for a1, a2 in group) for group in clusters(TABLE_3, 3))
    inside = sum(0.65 <= a2 <= 0.7 for _, a2 in TABLE_3)
    return [
        "## What section A.2 says of table 3, computed again",
        "",
        *table(["statistic (SD with n - 1)", "the paper's text", "its table 3", "agree"], rows),
        f"- The text says that r is driven by (10, 5) and that the other pairs show no trend. Without (10, 5), r is "
        f"{without:.2f}, so it is the other way round.",
        f"- The text says that a2 lies within 0.65 to 0.7 except for 0.1 and 5. {inside} of ten do; 1 occurs three times.",
        f"- Three clusters, cut from Ward's tree: {groups}. The text's three agree, except that it counts a1 = 1 to the low "
        "cluster with a2 of 0.65 to 0.7, while the pair is (1, 0.1).",
        f"- PC1 has {parts.explained[0]:.0%} of the variance and is nearly a1 alone ({parts.components[0][0]:.2f}, "
        f"{parts.components[0][1]:.2f}); PC2 is a2. As the text says.",
        "- The text speaks of the pairs [0.7, 0.7] in the dendrogram and (0.7, 0.3) as task 10's peak. Table 3 has neither: task "
        "10's pair there is (0.3, 0.7), with the same 96%.",
        "",
    ]


def group_sizes_table(statuses: Sequence[Status], variants: Sequence[Variant], tasks: Sequence[str]) -> list[str]:
    """Mean success over the tasks for each group size, beside the post's on another suite."""
    rows = []
    ran = [task for task in tasks if all(trained_rate(results_of(statuses, v.name), task, 0.0) for v in variants)]
    for variant, (_, post) in zip(variants, sorted(GROUP_SIZES.items()), strict=True):
        results = results_of(statuses, variant.name)
        mean = mean_over_tasks([trained_rate(results, task, 0.0) for task in ran]) if ran else None
        minutes = [result.train_seconds / 60 for result in results]
        cost = f"{sum(minutes) / len(minutes):.1f}" if minutes else NOT_RUN
        rows.append([variant.title, percent(mean), cost, f"{post.rate:.1%}"])
    header = [
        "trajectories a group",
        f"ours, greedy, mean of {counted(len(ran), 'task')}",
        "training, minutes a run",
        "the post, LIBERO-Goal",
    ]
    return ["## Success by group size", "", *table(header, rows)]


def suites_table(statuses: Sequence[Status], tasks: Sequence[str]) -> list[str]:
    """Mean success over each suite's tasks that have run, beside the post's, and the post's own averages checked."""
    rows = []
    titles = {BASE: "SFT", "grape": "GRAPE", "tgrpo": "TGRPO"}
    for name, title in titles.items():
        ours = []
        for suite in SUITES:
            own = [task for task in tasks if task.split("/")[0] == suite]
            rates = [
                base_rate(results_of(statuses), task, 0.0)
                if name == BASE
                else trained_rate(results_of(statuses, name), task, 0.0)
                for task in own
            ]
            ran = [rate for rate in rates if rate is not None]
            ours.append(f"{percent(mean_over_tasks(ran))} ({counted(len(ran), 'task')})" if ran else NOT_RUN)
        rows.append([f"{title}, ours", *ours, ""])
        theirs = [one.rate for one in SUITE_RATES[name]]
        mean, printed = sum(theirs) / len(theirs), SUITE_AVERAGES[name]
        agrees = rounds_to(mean, printed, 3)
        average = f"{printed:.1%}" if agrees else f"{printed:.1%}, but the four come to {mean:.1%}"
        rows.append([f"{title}, the post", *(f"{rate:.1%}" for rate in theirs), average])
    return [
        "## Success by suite, greedy",
        "",
        *table(["method", *SUITES.values(), "average"], rows),
        "The post has Object at 88.4% and 92.2% here, and at 86.4% and 91.0%, the paper's, in its first table. OpenVLA's authors "
        "publish 53.7% for SFT on Long; with it in place of 51.1% the four come to the 76.5% that the post prints.",
        "",
    ]
