from pathlib import Path
from typing import Annotated

import typer

from tgrpo_cli.options import DEFAULT_PARAMS, ParamsFile, Set, TaskId, read_params

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Measure this machine: what the simulator costs, against LIBERO's own wrapper and against MuJoCo alone.\n\n"
    "Example:\n\n    tgrpo bench sim --json sim.json",
)


@app.callback()
def _group() -> None:
    """Keeps `sim` a command of its own name while it is the only one."""


@app.command("sim")
def sim(
    task: TaskId = None,
    steps: Annotated[int, typer.Option(help="Control steps of each contender, 10 to 900.")] = 100,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer steps and resets: a look, no measurement.")] = False,
    json: Annotated[Path | None, typer.Option("--json", metavar="OUT", help="Write all figures to this file.")] = None,
    params: ParamsFile = DEFAULT_PARAMS,
    set_: Set = None,
) -> None:
    """Time a control step without images, with the benchmark's and with the params' own: LIBERO's wrapper, ours, mj_step.

    Takes about two minutes. LIBERO's own meshes, where you have them, are the fairer comparison: --set sim.assets=libero.

    Example:

        tgrpo bench sim --json sim.json
        tgrpo bench sim --set sim.assets=libero --set sim.assets_dir=FOLDER
    """
    from stages.bench_sim import bench_sim, table
    from stages.errors import UsageError
    from tgrpo_cli.output import reporter

    if json is not None and not json.parent.is_dir():
        raise UsageError(f"--json {json}: there is no folder {json.parent}; make it first")
    resolved = read_params(params, set_, task=task)
    record = bench_sim(resolved, min(steps, 20) if quick else steps, quick=quick, reporter=reporter())
    for line in table(record):
        print(line)
    if json is not None:
        json.write_text(record.to_json() + "\n")
