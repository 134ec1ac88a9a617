"""The error tree. A message says where, what was found, what was expected, and what mends it."""


class TgrpoError(Exception):
    """A failure the user can mend. The command line prints its message in one line and exits with 1."""

    exit_code = 1


class UsageError(TgrpoError):
    """The command was asked for something it cannot mean (a wrong flag, params key or handle kind). Exit 2."""

    exit_code = 2


class ParamsError(UsageError):
    """An unknown key, a wrong type or a value out of range in params.yaml or --set."""


class TaskError(UsageError):
    """A task, suite or initial state that does not exist."""


class ArtifactError(TgrpoError):
    """An artifact that is missing, half-written, of another schema version, or of the wrong kind."""


class MismatchError(TgrpoError):
    """Two artifacts that do not belong together, such as a checkpoint and a group sampled by another one."""


class SimulatorError(TgrpoError):
    """The simulator cannot start or broke: a refused version, no renderer, missing assets, a dead worker."""

    environment: int | None = None  # which one of a `VectorEnv` broke, where the failure is one environment's own


class DivergedError(TgrpoError):
    """Learning left the finite numbers. What is on disk is untouched; the policy in memory may have moved."""
