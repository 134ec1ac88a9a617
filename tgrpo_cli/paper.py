import sys
from typing import Annotated

import typer

from tgrpo_cli.options import DEFAULT_PARAMS, ParamsFile, Set


def command(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME",
            help="table1, table3, fig2, fig3, fig4, fig5, fig6, fig7, groupsize, suites or proof.",
        ),
    ],
    tasks: Annotated[
        str | None,
        typer.Option(help="Tasks, such as 6,7 of LIBERO-Object or libero_goal/1; default: those that the paper shows."),
    ] = None,
    seeds: Annotated[str, typer.Option(help="Seeds of training; every one counts.")] = "0,1,2",
    iterations: Annotated[int | None, typer.Option(help="Iterations of each run; default: train.iterations.")] = None,
    budget: Annotated[
        float | None, typer.Option(metavar="HOURS", help="Start no run that would probably end later.")
    ] = None,
    max_cells: Annotated[int | None, typer.Option(help="Run at most so many now.")] = None,
    run: Annotated[bool, typer.Option("--run/--no-run", help="Run what is missing, or print what is there.")] = True,
    params: ParamsFile = DEFAULT_PARAMS,
    set_: Set = None,
) -> None:
    """Make a table or figure of the paper again: run what it needs, and write it beside the paper's numbers.

    Runs are shared between tables, and a run that was cut off goes on. The document lies in docs/results/PROFILE/, with its
    numbers as JSON; what has not run stands there as not run. The runs are DVC experiments: cd data/paper && dvc exp show

    Example:

        tgrpo paper table1 --tasks 6,7 --seeds 0,1,2 --budget 8
        tgrpo paper fig7 --no-run
    """
    from stages.errors import UsageError
    from stages.paper.cells import parse_numbers, parse_tasks
    from stages.paper.documents import Request, paper
    from stages.paper.targets import find_target
    from stages.store.artifacts import digest_of
    from stages.store.handles import Handle
    from tgrpo_cli.output import reporter

    target = find_target(name)
    for option, value in (("--budget", budget), ("--max-cells", max_cells)):
        if value is not None and value < 0:
            raise UsageError(f"{option} {value:g} is below zero; leave it out to run all that is missing")
    options = [*(set_ or []), *([f"train.iterations={iterations}"] if iterations is not None else [])]
    request = Request(
        target,
        params,
        parse_tasks(tasks) if tasks is not None else (),
        parse_numbers(seeds, "--seeds"),
        tuple(options),
        run,
        budget,
        max_cells,
    )
    document = paper(request, reporter())
    if sys.stdout.isatty():
        print(document.read_text(encoding="utf-8"))
    print(Handle("paper", document, digest_of(document), None, {"name": name}).to_json())
