from pathlib import Path
from typing import Annotated

import typer

from tgrpo_cli.options import DEFAULT_PARAMS, Force, Out, ParamsFile, Set, read_params


def command(
    groups: Annotated[list[Path] | None, typer.Argument(help="Groups, or a folder of them; default: stdin.")] = None,
    algo: Annotated[
        str | None,
        typer.Option(
            help="Overrides update.algo: tgrpo, tgrpo_no_s, tgrpo_no_t, grpo, reinforce, ppo, grape, sft. `tgrpo update` needs "
            "the same."
        ),
    ] = None,
    weights: Annotated[
        str | None, typer.Option(help="manual: a1 and a2 as given | auto: found from each group.")
    ] = None,
    a1: Annotated[float | None, typer.Option(help="Weight of the step-level advantage S (eq. 8).")] = None,
    a2: Annotated[float | None, typer.Option(help="Weight of the trajectory-level advantage T (eq. 8).")] = None,
    out: Out = None,
    params: ParamsFile = DEFAULT_PARAMS,
    set_: Set = None,
    force: Force = False,
) -> None:
    """Compute the advantages of groups, one artifact per group: step and trajectory fused (eq. 6 to 8), or as --algo has it.

    Example:

        tgrpo rollout --envs 4 | tgrpo advantage --a1 0.3 --a2 0.7
    """
    from stages.advantage import advantages
    from stages.errors import UsageError
    from tgrpo_cli.inputs import read_inputs
    from tgrpo_cli.output import HandlePrinter, reporter

    given = a1 is not None or a2 is not None
    if given and weights == "auto":
        raise UsageError("--weights auto finds a1 and a2 itself; leave --a1 and --a2 out, or ask for --weights manual")
    resolved = read_params(
        params,
        set_,
        update__algo=algo,
        advantage__weights="manual" if given else weights,
        advantage__a1=a1,
        advantage__a2=a2,
    )
    if given and resolved.update.algo != "tgrpo":
        raise UsageError(f"--a1 and --a2 weigh S and T of tgrpo, and {resolved.update.algo} has no use for them")
    show = HandlePrinter()
    inputs = read_inputs(groups, "group", "advantage")
    for handle in advantages(resolved, inputs, out, overwrite=force, reporter=reporter()):
        show(handle)
