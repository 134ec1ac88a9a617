from pathlib import Path
from typing import Annotated

import typer

from tgrpo_cli.options import DEFAULT_PARAMS, Force, Out, ParamsFile, Set, TaskId, read_params


def command(
    task: TaskId = None,
    builtin: Annotated[
        bool, typer.Option("--builtin", help="The generator's program (gen_reward.program), without any model.")
    ] = False,
    from_file: Annotated[Path | None, typer.Option(help="A program of your own, such as reward.py.")] = None,
    demo: Annotated[
        Path | None, typer.Option(help="A group with a success, whose key poses the built-in program reads.")
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Ask the model even when the same was asked before.")] = False,
    model: Annotated[str | None, typer.Option(help="Overrides gen_reward.model.")] = None,
    out: Out = None,
    params: ParamsFile = DEFAULT_PARAMS,
    set_: Set = None,
    force: Force = False,
) -> None:
    """Write the reward program of a task, prove it on recorded trajectories, and keep it only then.

    Claude writes it (ANTHROPIC_API_KEY), and is told what verification finds wrong, gen_reward.rounds times at most; or it comes
    from a file, or from the generator. The recordings are made once for a task.

    Example:

        tgrpo gen-reward --task libero_object/7 --builtin

        ANTHROPIC_API_KEY=... tgrpo gen-reward --task libero_goal/1
    """
    from stages.errors import UsageError
    from stages.gen_reward import Builtin, FromFile, FromModel, gen_reward
    from tgrpo_cli.output import HandlePrinter, reporter

    if builtin and from_file:
        raise UsageError("--builtin and --from-file name two programs; give one of them")
    if (builtin or from_file) and (fresh or model):
        raise UsageError(
            "--fresh and --model are for a program that a model writes; leave out --builtin and --from-file"
        )
    if demo and not builtin:
        raise UsageError("--demo is for the built-in program; add --builtin")
    key_poses = "key_poses" if demo else None
    resolved = read_params(params, set_, task=task, gen_reward__model=model, gen_reward__program=key_poses)
    origin = Builtin(demo) if builtin else FromFile(from_file) if from_file else FromModel(fresh)
    HandlePrinter()(gen_reward(resolved, origin, out, reporter(), overwrite=force))
