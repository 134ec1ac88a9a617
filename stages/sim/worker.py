"""What runs in each process of a `VectorEnv`: one environment that answers commands until the socket closes."""

import socket
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

from stages.errors import SimulatorError, TgrpoError
from stages.sim.records import Command, Record

if TYPE_CHECKING:
    from stages.sim.env import LiberoEnv

DONE = b"."  # the answer to any command; a failure is answered by its name and its message, in two lines


def serve(connection: socket.socket, record: Record, env: "LiberoEnv") -> None:
    """Serves one environment until the other side of the socket is gone, or something fails.

    Answers once before any command: after its first frame, for which it makes its renderer.

    Args:
        connection: of messages; `Command` in, `DONE` or a failure out.
        record: commands' payloads in, all else out.
        env: the environment.
    """
    try:
        env.render()
        connection.send(DONE)
        while command := connection.recv(1):
            _obey(Command(command), record, env)
            connection.send(DONE)
    except (BrokenPipeError, ConnectionResetError):
        return  # nobody listens any more
    except Exception as error:
        connection.send(failure(error))


def failure(error: Exception) -> bytes:
    """How an error travels to the process that asked: its class in `stages.errors` and its message."""
    if not isinstance(error, TgrpoError):
        frame = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(frame.filename).name}:{frame.lineno}"
        error = SimulatorError(f"{type(error).__name__} in {where}: {' '.join(str(error).split())}")
    return f"{type(error).__name__}\n{error}".encode()


def _obey(command: Command, record: Record, env: "LiberoEnv") -> None:
    record["env_steps"] = 0
    if command == Command.RESET:
        env.reset(record.start())
        record["snapshot"] = env.snapshot()
    elif command == Command.RESTORE:
        env.restore(record["snapshot"])
    else:
        _hold(record, env)
    record["sim_state"][int(record["env_steps"]) :] = env.state()
    if command in (Command.RESET, Command.STEP):
        record["image"] = env.render()
        record["proprio"] = env.proprio()
        for name, values in vars(env.scene()).items():
            record[name] = values


def _hold(record: Record, env: "LiberoEnv") -> None:
    """Steps up to K times with one action, until the goal is reached; leaves the state after each step."""
    for step, row in enumerate(record["sim_state"], 1):
        success = env.step(record["action"])
        row[:] = env.state()
        record["env_steps"] = step
        record["alive_at"] = time.monotonic()
        if success:
            break
