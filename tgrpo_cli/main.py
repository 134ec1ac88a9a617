"""The entry point: the commands, and how every failure reaches a person.

Nothing heavy is imported here or in the command modules' own bodies, so `tgrpo --help` answers at once.
"""

import logging
import os
import sys
from collections.abc import Callable

import typer

from stages.errors import TgrpoError
from tgrpo_cli import (
    advantage,
    bench,
    compare,
    demos,
    doctor,
    evaluate,
    export,
    gen_reward,
    inspect,
    paper,
    parity,
    replay,
    rescore,
    rollout,
    sft,
    train,
    update,
    verify_reward,
)

app = typer.Typer(
    name="tgrpo",
    help="Fine-tune a vision-language-action policy by TGRPO in the LIBERO simulator.\n\n"
    "Every stage reads artifacts and writes artifacts; pipes, DVC and `tgrpo train` join them with the same result:\n\n"
    "    tgrpo rollout --envs 4 | tgrpo advantage --a1 0.3 --a2 0.7 | tgrpo update",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
COMMANDS: dict[str, Callable[..., None]] = {
    "gen-reward": gen_reward.command,
    "verify-reward": verify_reward.command,
    "demos": demos.command,
    "sft": sft.command,
    "rollout": rollout.command,
    "rescore": rescore.command,
    "advantage": advantage.command,
    "update": update.command,
    "eval": evaluate.command,
    "train": train.command,
    "compare": compare.command,
    "paper": paper.command,
    "inspect": inspect.command,
    "replay": replay.command,
    "parity": parity.command,
    "export": export.command,
    "doctor": doctor.command,
}
for name, command in COMMANDS.items():
    app.command(name)(command)
app.add_typer(bench.app, name="bench")


def main() -> None:
    """Runs a command. A failure the user can mend is one line on stderr; a traceback means a defect in tgrpo."""
    logging.basicConfig(format="tgrpo: %(message)s")
    logging.getLogger("stages").setLevel(logging.INFO)  # such as which renderer was chosen; to stderr
    try:
        app()
    except TgrpoError as error:
        print(f"tgrpo: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None
    except BrokenPipeError:
        # The reader of our handles is gone; nothing is lost, every artifact named so far is whole.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
    except OSError as error:
        import errno

        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
            raise
        where = f" ({error.filename})" if error.filename else ""
        print(
            f"tgrpo: {error.strerror}{where}; nothing half-written was kept: free space or choose --out",
            file=sys.stderr,
        )
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
