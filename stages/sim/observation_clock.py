"""When, within an environment step, LIBERO takes its observation: robosuite's timers, to the last bit of their rounding."""

PHYSICS_STEPS = 25  # in one environment step

_PHYSICS_STEP = 0.002  # s
_PERIOD = 1 / 20  # s, robosuite's sampling period of every observable


class ObservationClock:
    """Tells after which physics steps robosuite's observables sample.

    They count the time since the last sample from the reset on, and each forced sample counts as a physics step. So
    after LIBERO's protocol (reset, then set_init_state) they sample after the 24th physics step of an environment step
    instead of the last, and after a reset alone after the 25th.
    """

    def __init__(self) -> None:
        self.start(1)

    def start(self, forced: int) -> None:
        """Begins an episode in which `forced` observations were taken before the first step."""
        self._elapsed = sum([_PHYSICS_STEP] * forced)
        self._sampled = True

    def pass_env_step(self) -> int:
        """Lets an environment step pass; returns the index of its last sampled physics step, from 0, or -1 for none."""
        last = -1
        for index in range(PHYSICS_STEPS):
            self._elapsed += _PHYSICS_STEP
            if not self._sampled and self._elapsed <= _PERIOD:
                last, self._sampled = index, True
            if self._elapsed >= _PERIOD:
                if not self._sampled:
                    last = index
                self._elapsed %= _PERIOD
                self._sampled = False
        return last

    @property
    def memory(self) -> tuple[float, float]:
        """All that the next samples depend on; assign it to put the clock back."""
        return self._elapsed, float(self._sampled)

    @memory.setter
    def memory(self, value: tuple[float, float]) -> None:
        self._elapsed, self._sampled = value[0], bool(value[1])
