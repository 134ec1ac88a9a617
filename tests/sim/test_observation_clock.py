"""The clock against robosuite's own Observable, which it stands for."""

import pytest

from stages.sim.observation_clock import PHYSICS_STEPS, ObservationClock
from tests.sim.sample import SIM


def _robosuites(forced: int, env_steps: int) -> list[int]:
    """The physics step at which an Observable with robosuite's defaults last sampled, in each environment step."""
    from stages.sim.runtime import prepare

    prepare(SIM)
    from robosuite.utils.observables import Observable, sensor

    calls = [0]

    @sensor(modality="test")
    def count(cache: dict[str, float]) -> float:
        calls[0] += 1
        return 0.0

    observable = Observable("count", count, sampling_rate=20)
    observable.reset()
    for _ in range(forced):
        observable.update(0.002, {}, force=True)
    sampled = []
    for _ in range(env_steps):
        last = -1
        for index in range(PHYSICS_STEPS):
            before = calls[0]
            observable.update(0.002, {})
            last = index if calls[0] > before else last
        sampled.append(last)
    return sampled


@pytest.mark.parametrize("forced", [1, 2, 3])
def test_samples_when_robosuite_does(forced: int) -> None:
    clock = ObservationClock()
    clock.start(forced)
    assert [clock.pass_env_step() for _ in range(520)] == _robosuites(forced, 520)


def test_liberos_protocol_samples_the_24th_physics_step() -> None:
    clock = ObservationClock()
    clock.start(forced=2)  # the reset's observation and that of set_init_state
    assert {clock.pass_env_step() for _ in range(520)} == {23}


def test_goes_on_from_its_memory() -> None:
    clock, other = ObservationClock(), ObservationClock()
    clock.start(2)
    clock.pass_env_step()
    other.memory = clock.memory
    assert [clock.pass_env_step() for _ in range(30)] == [other.pass_env_step() for _ in range(30)]
