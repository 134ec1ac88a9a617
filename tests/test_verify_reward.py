"""Verification end to end on real trajectories: the built-in program passes, and broken ones are refused for what is wrong."""

import json
import shutil
from pathlib import Path

import pytest

from stages.errors import ArtifactError, MismatchError
from stages.probes import ensure_probes, probe_groups, probes_path
from stages.reward_files import builtin_reward
from stages.rewards.program import Reward
from stages.rewards.scorer import make_context
from stages.store.groups import open_group
from stages.verify_reward import read_report, verify_reward, write_report
from tests.probe_sample import recorded, sample_params

TASK = "libero_object/6"
GRASPED_TARGET = "carried = lifted & (target.grasped | above)"
ANOTHER = '((state.objects["tomato_sauce_1"].lift > LIFT) & state.objects["tomato_sauce_1"].grasped)'
CARRIED = "        carried & above,\n"


def builtin() -> Reward:
    group = open_group(probe_groups(recorded())[0])
    return builtin_reward(sample_params().gen_reward, make_context(TASK, group.names, group.attrs.max_env_steps))


def broken(*replacements: tuple[str, str]) -> Reward:
    """The built-in program with some of its text exchanged."""
    source = builtin().source
    for old, new in replacements:
        assert old in source
        source = source.replace(old, new)
    return Reward(TASK, source)


def test_the_built_in_program_passes(tmp_path: Path) -> None:
    params = sample_params()
    report = verify_reward(builtin(), params, probes=recorded())
    assert report.passed, report.findings()
    assert {check.name: check.passed for check in report.checks} == dict.fromkeys(
        [
            *("runs", "deterministic", "vectorised", "fast", "bounded", "varies", "ranking", "order", "staircase"),
            *("completion", "drop punished", "right object", "progress", "honest"),
        ],
        True,
    )
    assert [level for level, _ in report.levels] == [-4, -2, 2, 4, 8, 10, 12, 16]
    assert report.reward_digest == builtin().digest

    write_report(tmp_path, report, params, recorded())
    assert read_report(tmp_path) == report
    assert json.loads((tmp_path / "report.json").read_text())["verdict"] == report.verdict
    assert (tmp_path / "verification.png").read_bytes().startswith(b"\x89PNG")


CONSTANT = "VECTORISED = False\n\n\ndef compute_reward(state, info):\n    return 1.0\n"
HOVERS = 'np.linalg.norm((state.ee_pos - state.objects["basket_1"].pos)[..., :2], axis=-1) < 0.1'
FAST = "np.linalg.norm(target.lin_vel, axis=-1) > 0.05"


@pytest.mark.parametrize(
    ("reward", "failed"),
    [
        pytest.param(
            lambda: Reward(TASK, CONSTANT),
            {"varies", "ranking", "order", "completion", "drop punished", "right object", "honest"},
            id="constant",
        ),
        pytest.param(lambda: broken(("[16.0,", "[14.0,")), {"completion"}, id="success is not clearly the highest"),
        pytest.param(
            lambda: broken(
                (CARRIED, f"        {HOVERS},\n" + CARRIED),
                ("[16.0,", "[16.0, 15.0,"),
                ("[PLACED,", "[PLACED, ABOVE_BASKET,"),
            ),
            {"completion", "honest", "ranking", "right object"},
            id="hovering is rewarded",
        ),
        pytest.param(lambda: broken(("-4.0", "8.0")), {"drop punished"}, id="no drop penalty"),
        pytest.param(
            lambda: broken((GRASPED_TARGET, f"{GRASPED_TARGET} | {ANOTHER}")),
            {"right object"},
            id="another object will do",
        ),
        pytest.param(
            lambda: broken(("return reward,", "return -reward,")),
            {"ranking", "order", "completion", "drop punished", "right object", "progress", "honest"},
            id="sign flipped",
        ),
        pytest.param(
            lambda: broken(
                ("READY, LIFTED, NEAR_BASKET, ABOVE_BASKET, PLACED", "LIFTED, READY, NEAR_BASKET, ABOVE_BASKET, PLACED")
            ),
            {"order"},
            id="milestones in the wrong order",
        ),
        pytest.param(
            lambda: broken(
                (CARRIED, f"        carried & ({FAST}),\n        carried,\n" + CARRIED),
                ("[16.0,", "[16.0, -30.0, 12.0,"),
                ("[PLACED,", "[PLACED, LIFTED, LIFTED,"),
            ),
            {"honest", "ranking", "order", "progress", "staircase", "right object"},
            id="holding still beats carrying",
        ),
        pytest.param(
            lambda: broken(("    return reward,", "    reward = reward - to_target\n    return reward,")),
            {"staircase"},
            id="no staircase",
        ),
        pytest.param(
            lambda: broken(
                (
                    "    return reward,",
                    "    reward = reward + np.where(reward == 2, to_target // 0.03 / 4, 0)\n    return reward,",
                )
            ),
            {"staircase"},
            id="dense within a milestone",
        ),
        pytest.param(
            lambda: broken(
                (
                    "    return reward,",
                    "    reward = reward + np.where((reward == 8) & (state.step % 8 < 4), 0.5, 0)\n    return reward,",
                )
            ),
            {"staircase"},
            id="changes with time within a milestone",
        ),
        pytest.param(
            lambda: broken(
                ('    return reward, {"milestone": milestone}', "    return reward + to_target // 0.05 / 8")
            ),
            {"order", "staircase"},
            id="dense, without milestones",
        ),
    ],
)
def test_a_broken_program_is_refused_for_what_is_wrong(reward: object, failed: set[str]) -> None:
    report = verify_reward(reward(), sample_params(), probes=recorded())  # type: ignore[operator]
    assert {check.name for check in report.failed} == failed, report.findings()
    assert not report.passed and report.verdict.startswith("refused")
    assert all(check.found in " ".join(report.findings().split()) for check in report.failed)


def test_a_program_that_fails_on_one_trajectory_is_told_where() -> None:
    source = "def compute_reward(state, info):\n    return 1 / (state.step - 37 * 4 + 28)\n"
    report = verify_reward(Reward("", source), sample_params(), probes=recorded())
    (check,) = report.checks
    assert (check.name, check.passed, report.passed) == ("runs", False, False)
    assert "decision 29 of 'cut off at 25%'" in check.where and "line 2" in check.where


def test_what_does_not_belong_together_is_refused(tmp_path: Path) -> None:
    params = sample_params()
    with pytest.raises(
        MismatchError, match=r"is a reward for libero_object/3, and the probes in .* are of libero_object/6"
    ):
        verify_reward(Reward("libero_object/3", CONSTANT), params, probes=recorded())
    with pytest.raises(ArtifactError, match="does not exist: expected"):
        verify_reward(Reward("", CONSTANT), params, probes=tmp_path / "none")
    report = verify_reward(Reward("", CONSTANT), params, probes=recorded())
    other = shutil.copytree(recorded(), tmp_path / "other")
    (other / "more").write_text("")
    with pytest.raises(MismatchError, match="on other probes"):
        write_report(tmp_path, report, params, other)
    assert not (tmp_path / "report.json").exists()
    with pytest.raises(ArtifactError, match=r"report\.json does not exist; write one with `tgrpo verify-reward`"):
        read_report(tmp_path)


def test_probes_that_are_there_are_not_recorded_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    params = sample_params()
    there = shutil.copytree(recorded(), probes_path(params))
    monkeypatch.setattr("stages.probes.record_probes", lambda *_: pytest.fail("recorded again"))
    assert ensure_probes(params) == there
    others = [
        params.model_copy(update={"seed": 1}),
        params.model_copy(update={"task": "libero_object/3"}),
        params.model_copy(update={"sim": params.sim.model_copy(update={"action_repeat": 2})}),
        params.model_copy(update={"rollout": params.rollout.model_copy(update={"max_env_steps": 100})}),
    ]
    assert len({probes_path(p) for p in [params, *others]}) == 5
    irrelevant = params.model_copy(update={"rollout": params.rollout.model_copy(update={"envs": 2})})
    assert probes_path(irrelevant) == probes_path(params)
