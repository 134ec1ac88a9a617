import typer

from tgrpo_cli.options import DEFAULT_PARAMS, ParamsFile, Set, read_params


def command(params: ParamsFile = DEFAULT_PARAMS, set_: Set = None) -> None:
    """Check the installation, and what training with these params would take. Exit 1 when something is missing.

    Packages and refused versions, renderers, assets, device; then, without downloading or training anything, the policy's
    download, the memory of rollout and update, and roughly the time.

    Example:

        tgrpo doctor
        tgrpo doctor --profile openvla-7b
    """
    from stages.doctor import examine

    worst = 0
    for check in examine(read_params(params, set_)):
        print(check.line())
        worst = max(worst, check.severity)
    if worst > 1:
        raise typer.Exit(1)
