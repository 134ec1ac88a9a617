from pathlib import Path
from typing import Annotated

import typer

from tgrpo_cli.options import DEFAULT_PARAMS, Base, Force, Out, ParamsFile, Seed, Set, TaskId, read_params


def command(
    checkpoint: Annotated[
        list[Path] | None, typer.Argument(help="Checkpoints; default: stdin when piped, else policy.base of params.")
    ] = None,
    episodes: Annotated[int | None, typer.Option(help="Start states to play, at most 50.")] = None,
    temperature: Annotated[float | None, typer.Option(help="0 is greedy.")] = None,
    repeats: Annotated[
        int | None, typer.Option(help="How often to play each start, with other sampling seeds; greedy: once.")
    ] = None,
    starts: Annotated[
        str | None, typer.Option(help="official: LIBERO's 50 | validation: sampled ones that training does not use.")
    ] = None,
    base: Base = None,
    task: TaskId = None,
    out: Out = None,
    seed: Seed = None,
    params: ParamsFile = DEFAULT_PARAMS,
    set_: Set = None,
    force: Force = False,
) -> None:
    """Measure a checkpoint's success rate on start states it was not trained on, with its 95% Wilson interval.

    50 official initial states are the paper's protocol. Episodes in which the simulator crashed are counted apart.

    Example:

        tgrpo eval data/checkpoints/0001 --episodes 50
    """
    from stages.evaluate import evaluate_checkpoints
    from tgrpo_cli.inputs import piped, read_inputs
    from tgrpo_cli.output import HandlePrinter, reporter

    resolved = read_params(
        params,
        set_,
        eval__episodes=episodes,
        eval__temperature=temperature,
        eval__repeats=repeats,
        eval__starts=starts,
        policy__base=base,
        task=task,
        seed=seed,
    )
    if checkpoint or piped():
        paths = (handle.path for handle in read_inputs(checkpoint, "checkpoint", "eval"))
    else:
        paths = (Path(path) for path in [resolved.policy.base_of(resolved.task)])
    show = HandlePrinter()
    for handle in evaluate_checkpoints(resolved, paths, out, reporter(), overwrite=force):
        show(handle)
