from pathlib import Path
from typing import Annotated, Literal

import typer

from tgrpo_cli.options import DEFAULT_PARAMS, ParamsFile, Set, TaskId, read_params, require_folder

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Measure this machine: what the simulator costs, against LIBERO's own wrapper and against MuJoCo alone; and what the "
    "policy costs, against a plain loop and against what the device allows.\n\n"
    "Example:\n\n    tgrpo bench sim --json sim.json",
)
Json = Annotated[Path | None, typer.Option("--json", metavar="OUT", help="Write all figures to this file.")]


@app.command("sim")
def sim(
    task: TaskId = None,
    steps: Annotated[int, typer.Option(help="Control steps of each contender, 10 to 900.")] = 100,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer steps and resets: a look, no measurement.")] = False,
    json: Json = None,
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
    from tgrpo_cli.output import reporter

    require_folder(json)
    resolved = read_params(params, set_, task=task)
    record = bench_sim(resolved, min(steps, 20) if quick else steps, quick=quick, reporter=reporter())
    for line in table(record):
        print(line)
    if json is not None:
        json.write_text(record.to_json() + "\n")


@app.command("policy")
def policy(
    config: Annotated[
        Literal["openvla-tiny", "openvla-7b"] | None,
        typer.Option(help="Random weights of this architecture; without it, the checkpoint that params name."),
    ] = None,
    batch: Annotated[int, typer.Option(help="Observations to act on, and decisions to learn from, at once.")] = 8,
    learn_batch: Annotated[int | None, typer.Option(help="Decisions to learn from at once, where not --batch.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer rounds: a look, no measurement.")] = False,
    json: Json = None,
    params: ParamsFile = DEFAULT_PARAMS,
    set_: Set = None,
) -> None:
    """Time decisions and learning: preprocessing, prefill, decode, act, log_prob and its backward pass, memory.

    Beside a plain loop of transformers' generate over the same weights, one observation at a time as OpenVLA's own code
    does it, and beside the roofline of the device, measured in the same run. Takes a minute on a CPU.

    Example:

        tgrpo bench policy --json policy.json
        tgrpo bench policy --profile openvla-7b --config openvla-7b --batch 4 --learn-batch 8
    """
    from stages.bench_policy import bench_policy, table
    from tgrpo_cli.output import reporter

    require_folder(json)
    record = bench_policy(read_params(params, set_), batch, config, learn_batch, quick=quick, reporter=reporter())
    for line in table(record):
        print(line)
    if json is not None:
        json.write_text(record.to_json() + "\n")
