"""What a reward program may use up."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Limits of one batch of moments (`RewardProcess` sends up to some thousands at a time) and of loading the program.

    Time is CPU time first: on a busy machine the wall clock says little about a program. The wall clock ends what waits
    instead of computing, at `wall_factor` times the CPU time.
    """

    cpu_seconds: float = 2.0
    cpu_seconds_per_moment: float = 0.001  # on top; a usual program takes some 20 microseconds
    wall_factor: float = 10.0
    memory_mib: int = 512  # address space above what the interpreter with numpy takes
    start_seconds: float = 60.0  # wall clock, until numpy is loaded

    def cpu(self, moments: int) -> float:
        """Seconds of CPU time for a batch of this size; 0 moments is loading the program."""
        return self.cpu_seconds + moments * self.cpu_seconds_per_moment

    def wall(self, moments: int) -> float:
        """Seconds of wall clock for a batch of this size."""
        return self.wall_factor * self.cpu(moments)
