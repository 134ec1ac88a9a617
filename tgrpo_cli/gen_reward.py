from tgrpo_cli.options import DEFAULT_PARAMS, Force, Out, ParamsFile, Set, TaskId, read_params


def command(
    task: TaskId = None, out: Out = None, params: ParamsFile = DEFAULT_PARAMS, set_: Set = None, force: Force = False
) -> None:
    """Write the reward of a task as an artifact: the built-in multi-milestone reward of the paper's Algorithm 2.

    Example:

        tgrpo gen-reward --task libero_object/0 --set gen_reward.lift_m=0.04
    """
    from stages.gen_reward import gen_reward
    from tgrpo_cli.output import HandlePrinter

    HandlePrinter()(gen_reward(read_params(params, set_, task=task), out, overwrite=force))
