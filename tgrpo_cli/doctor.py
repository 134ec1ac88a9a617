import typer

from tgrpo_cli.options import DEFAULT_PARAMS, ParamsFile, Set, read_params


def command(params: ParamsFile = DEFAULT_PARAMS, set_: Set = None) -> None:
    """Check the installation: packages and refused versions, renderers, assets, device. Exit 1 when something is missing.

    Example:

        tgrpo doctor
    """
    from stages.doctor import examine

    worst = 0
    for check in examine(read_params(params, set_)):
        print(check.line())
        worst = max(worst, check.severity)
    if worst > 1:
        raise typer.Exit(1)
