"""A program's first run in the sandbox, and the report that comes of it."""

import json

import numpy as np
import pytest

from stages.errors import ArtifactError, MismatchError
from stages.rewards.interface import MOMENT_FIELDS, Context, Moments, moment_dtype, moment_shape
from stages.rewards.program import Reward
from stages.rewards.verification import Report, Trial, make_report, try_program
from tests.rewards.test_verification_checks import trajectories

CONTEXT = Context("task/0", ("cup_1",), (), (), (), (("on", "cup_1", "cup_1"),), 100)
COUNT = 40
MOMENTS: Moments = {
    name: np.full((COUNT, *moment_shape(name, CONTEXT)), 1, moment_dtype(name)) for name in MOMENT_FIELDS
} | {"step": np.arange(COUNT)}
NUMPY = "import numpy as np\n"
LOOP = (
    NUMPY
    + "def compute_reward(state, info):\n    x = 0.0\n    for i in range(1000):\n        x = x + np.sqrt(i)\n    return x"
)
HEAD = "def compute_reward(state, info):\n    "


def tried(source: str) -> Trial:
    return try_program(Reward("", source), CONTEXT, MOMENTS, lambda index: f"the moment number {index}")


def test_a_program_that_runs_is_scored() -> None:
    trial = tried(HEAD + "return state.step / 2")
    np.testing.assert_array_equal(trial.scored.reward, np.arange(COUNT) / 2)  # type: ignore[union-attr]
    assert [(c.name, c.passed) for c in trial.checks] == [
        ("runs", True),
        ("deterministic", True),
        ("vectorised", None),
        ("fast", True),
    ]
    assert "measured" in trial.checks[-1].measured and trial.seconds_per_call is not None


@pytest.mark.parametrize(
    ("source", "name", "found", "where"),
    [
        (HEAD + "return 1 / (state.step - 37)", "runs", "ZeroDivisionError", "line 2 of the program; moment 37 is"),
        (HEAD + "return float('nan')", "runs", "nan", "line"),
        (HEAD + "return 'much'", "runs", "the text 'much'", "moment 0 is the moment number 0"),
        ("import os\n" + HEAD + "return 1", "runs", "imports 'os'", "line 1"),
        ("x = 1", "runs", "compute_reward", ""),
        (
            NUMPY + "VECTORISED = True\n" + HEAD + "return state.step - np.mean(state.step)",
            "vectorised",
            "among 40 moments",
            "line",
        ),
        (LOOP, "fast", "more than 50 microseconds", ""),
    ],
)
def test_what_is_wrong_is_found(source: str, name: str, found: str, where: str) -> None:
    trial = tried(source)
    (check,) = [check for check in trial.checks if check.passed is False]
    assert check.name == name
    assert found in check.found and where in check.where
    report = make_report("task/0", "d" * 64, "p" * 64, trial, None, (), {}, 4) if trial.scored is None else None
    assert report is None or (not report.passed and check.found in report.findings())


def report_on(**changes: object) -> Report:
    trial = Trial(None, list(tried(HEAD + "return 1.0").checks), 1e-6)
    t = trajectories(**changes)  # type: ignore[arg-type]
    return make_report("task/0", "d" * 64, "p" * 64, trial, [t], t.milestone_names, {"numpy": "2"}, 4)


def test_a_report_comes_back_from_json_as_it_was() -> None:
    report = report_on()
    assert report.passed and report.verdict == "passed: 13 checks on 7 trajectories from 1 starts"
    assert Report.from_json(json.loads(json.dumps(report.to_json())), "r.json") == report
    assert report.rows[0].rewards == ((-2.0, 1), (4.0, 1), (8.0, 2), (16.0, 1))
    assert (report.rows[0].best, report.rows[1].best, report.rows[1].last) == ("placed", "lifted", -4.0)
    assert report.auc == 1.0
    assert dict(report.levels)[8.0] == ("lifted",)


def test_findings_name_what_failed_and_hold_no_measured_time() -> None:
    report = report_on(drop=[-2, 4, 8, 8, 8, 8, 8, 8])
    assert report.verdict == "refused: 1 of 13 checks fail: drop punished"
    said = report.findings()
    assert "drop punished: 8 while the object is held, 8 when it has fallen." in said
    assert "Required: after a drop a reward below" in said and "-2 x1, 4 x1, 8 x2, 16 x1" in said
    slow = [c for c in report.checks if c.measured]
    assert slow and all(c.measured not in said for c in slow)
    assert said == report_on(drop=[-2, 4, 8, 8, 8, 8, 8, 8]).findings()


def test_a_report_is_for_one_program() -> None:
    report = report_on()
    report.refuse_other("d" * 64)
    with pytest.raises(MismatchError, match="digest dddddddddddd, and this one has eeeeeeeeeeee"):
        report.refuse_other("e" * 64)


@pytest.mark.parametrize("change", ["missing", "version", "verdict", "text"])
def test_a_report_that_is_not_whole_is_refused(change: str) -> None:
    data = json.loads(json.dumps(report_on().to_json()))
    if change == "missing":
        del data["rows"]
    elif change == "version":
        data["report_version"] = 0
    elif change == "verdict":
        data["passed"] = False
    else:
        data = []
    with pytest.raises(ArtifactError, match=r"r\.json is no whole report"):
        Report.from_json(data, "r.json")
