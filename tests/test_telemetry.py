"""What a run measures of itself, and what it foretells from it."""

import time
from pathlib import Path

import pytest

from stages.telemetry import COLUMNS, Clock, Line, read_telemetry, record, seconds_an_iteration, seconds_left


def clock(env_steps: int = 0, **seconds: float) -> Clock:
    made = Clock()
    made.seconds.update(seconds)
    made.env_steps = env_steps
    return made


def line(iteration: int, seconds: float, validate: float = 0.0, evaluate: float = 0.0) -> Line:
    parts = {"seconds_sample": seconds, "seconds_validate": validate, "seconds_evaluate": evaluate}
    return dict.fromkeys(COLUMNS, 0.0) | parts | {"iteration": iteration, "seconds": seconds + validate + evaluate}


def test_a_clock_adds_up_the_parts() -> None:
    measured = Clock()
    for _ in range(2):
        with measured.part("update"):
            time.sleep(0.02)
    with pytest.raises(ZeroDivisionError), measured.part("sample"):
        _ = 1 / 0
    assert 0.04 <= measured.seconds["update"] < 1
    assert measured.seconds.keys() == {"update", "sample"}  # what failed took time too


def test_lines_are_kept_by_iteration_and_never_twice(tmp_path: Path) -> None:
    at = tmp_path / "telemetry.csv"
    assert read_telemetry(at) == []
    record(at, 1, clock(sample=4.0, update=2.0, env_steps=1000))
    record(at, 0, clock(evaluate=10.0))
    assert [found["iteration"] for found in read_telemetry(at)] == [0, 1]
    # The process was cut off and another one went on with iteration 1: what both spent counts.
    record(at, 1, clock(sample=1.0, write=0.5, env_steps=250))
    before, first = read_telemetry(at)
    assert before["seconds"] == 10.0 and before["env_steps_per_s"] == 0.0
    assert (first["seconds_sample"], first["seconds"], first["env_steps"]) == (5.0, 7.5, 1250)
    assert first["env_steps_per_s"] == 250.0
    # A process that found all on disk measured nothing and leaves the bytes alone.
    found = at.read_bytes()
    record(at, 1, Clock())
    assert at.read_bytes() == found


def test_what_is_left_counts_iterations_validations_and_the_evaluation() -> None:
    lines = [line(0, 0.0, validate=20.0, evaluate=60.0), line(1, 30.0), line(2, 40.0, validate=10.0)]
    assert seconds_an_iteration(lines) == 35.0
    # After iteration 2 of 7, validating every 2: five iterations, validations after 4, 6 and 7 of 15 s each, evaluation.
    assert seconds_left(lines, 2, 7, every=2) == 5 * 35.0 + 3 * 15.0 + 60.0
    assert seconds_left(lines, 7, 7, every=2) == 60.0
    assert seconds_left([line(1, 30.0)], 1, 3, every=0) == 60.0
