"""Which rewards may be trained on."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from stages.errors import MismatchError
from stages.gen_reward import built_in
from stages.params import Params
from stages.rewards.program import Reward
from stages.rewards.verification import Check, Report
from stages.sim.tasks import list_tasks
from stages.trust import is_shipped, refuse_unverified
from tests.conftest import Run

TASK = "libero_object/6"
REWARD = Reward(TASK, "def compute_reward(state, info):\n    return 1.0\n", path="reward.py")
PASSED = Report(
    task=TASK,
    reward_digest=REWARD.digest,
    probes_digest="0" * 64,
    passed=True,
    checks=(Check("honest", True, "nothing returns more", "less"),),
    rows=(),
    levels=(),
    milestone_names=(),
    decisions=50,
    env_steps=4,
    seconds_per_call=None,
    versions={},
)
REFUSED = replace(PASSED, passed=False, checks=(replace(PASSED.checks[0], passed=False),))


@pytest.fixture
def put(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Report, str], Path]:
    """Writes a report into a folder of the working directory, a user's project."""
    monkeypatch.chdir(tmp_path)

    def put(report: Report, folder: str) -> Path:
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "report.json").write_text(json.dumps(report.to_json()))
        return Path(folder)

    return put


def test_a_reward_without_a_report_is_refused_with_the_remedy(put: Callable[[Report, str], Path]) -> None:
    says = (
        r"is not verified for libero_object/6; .*`tgrpo verify-reward reward.py --task libero_object/6`.*--unverified"
    )
    with pytest.raises(MismatchError, match=says):
        refuse_unverified(REWARD, Path("reward.py"), TASK)
    with pytest.raises(MismatchError, match="verify-reward --builtin --task libero_object/6"):
        refuse_unverified(REWARD, None, TASK)


@pytest.mark.parametrize("folder", ["data/rewards/0001", "data/reports/0007"])
def test_a_report_that_it_passed_counts_in_the_artifact_and_under_reports(
    put: Callable[[Report, str], Path], folder: str
) -> None:
    put(PASSED, folder)
    refuse_unverified(REWARD, Path("data/rewards/0001"), TASK)


def test_a_report_on_another_task_counts_for_nothing(put: Callable[[Report, str], Path]) -> None:
    """A bare program may run on several tasks, and pass on one of them."""
    put(PASSED, "data/reports/0001")
    with pytest.raises(MismatchError, match=r"0001/report\.json is on libero_object/6\); .*--task libero_object/7`"):
        refuse_unverified(REWARD, Path("reward.py"), "libero_object/7")


def test_a_report_that_it_failed_is_quoted(put: Callable[[Report, str], Path]) -> None:
    path = put(REFUSED, "data/rewards/0001")
    with pytest.raises(MismatchError, match="refused: 1 of 1 checks fail: honest"):
        refuse_unverified(REWARD, path, TASK)


def test_a_report_on_another_program_counts_for_nothing(put: Callable[[Report, str], Path]) -> None:
    path = put(PASSED, "data/rewards/0001")
    with pytest.raises(MismatchError, match="is on another program"):
        refuse_unverified(replace(REWARD, source=REWARD.source + "# changed\n"), path, TASK)


def test_a_report_that_says_more_than_its_checks_counts_for_nothing(put: Callable[[Report, str], Path]) -> None:
    path = put(replace(REFUSED, passed=True), "data/rewards/0001")
    with pytest.raises(MismatchError, match="is not verified"):
        refuse_unverified(REWARD, path, TASK)


@pytest.mark.parametrize("suite", ["libero_spatial", "libero_object", "libero_goal", "libero_10"])
def test_the_built_in_rewards_are_verified_as_they_are_now(params: Params, suite: str) -> None:
    for task in list_tasks(suite):
        reward = built_in(params.model_copy(update={"task": task.id}))
        assert is_shipped(reward, task.id), f"run scripts/verify_builtins.py {task.id}"
        assert not is_shipped(reward, "libero_90/0")


def test_a_built_in_reward_with_other_thresholds_is_not_the_verified_one(params: Params) -> None:
    changed = params.gen_reward.model_copy(update={"lift_m": 0.04})
    assert is_shipped(built_in(params), TASK)
    assert not is_shipped(built_in(params.model_copy(update={"gen_reward": changed})), TASK)


def test_rollout_refuses_an_unverified_reward_before_it_samples(tgrpo: Callable[..., Run], project: Path) -> None:
    (project / "mine.py").write_text(REWARD.source)
    run = tgrpo("rollout", "--reward", "mine.py")
    assert (run.code, run.out) == (1, "")
    assert "mine.py is not verified for libero_object/6" in run.err and "Traceback" not in run.err
    assert not (project / "data" / "groups").exists()
