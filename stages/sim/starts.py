"""Initial states by name, as params, artifacts and users write them: `official/3`, `sampled/123`."""

from stages.errors import TaskError
from stages.types import InitialState

MAX_SEED = 2**32 - 1  # LIBERO's sampler draws from numpy's global stream, which takes no larger seed


def parse_start(name: str) -> InitialState:
    """The initial state of a name; whether a task has that official state is found out by the reset.

    Raises:
        TaskError: not the name of an initial state.
    """
    source, _, index = name.partition("/")
    if index.isascii() and index.isdecimal() and int(index) <= MAX_SEED:
        if source == "official":
            return InitialState("official", int(index))
        if source == "sampled":
            return InitialState("sampled", int(index))
    raise TaskError(
        f"{name!r} is no initial state; expected official/INDEX, such as official/3, or sampled/SEED with a seed from 0 "
        f"to {MAX_SEED}"
    )
