"""`tgrpo gen-reward` and `verify-reward` as a user runs them, on the real simulator and against a server that speaks the API."""

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from stages.gen_reward import _Telling, built_in
from stages.params import Params
from stages.reporting import Advance, Silent
from tests.conftest import Run
from tests.rewards.llm.loopback import GOOD_REPLY, Loopback, say

TASK = "libero_object/7"  # no policy of this task is shipped, so the recordings are short
HOVER = '''\
import numpy as np


def compute_reward(state, info):
    """Pays for a hand above the basket, and forgets what is in it."""
    above = np.linalg.norm((state.ee_pos - state.objects["basket_1"].pos)[:2]) < 0.15
    return 20.0 if above else (16.0 if info.task_success else -1.0)
'''


def test_without_a_key_the_offline_ways_are_named_before_anything_is_recorded(
    tgrpo: Callable[..., Run], monkeypatch: pytest.MonkeyPatch, project: Path
) -> None:
    for name in ("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    (project / "data" / "cache" / "llm").mkdir(parents=True)
    (project / "data" / "cache" / "llm" / "another.json").write_text("{}")  # of another request
    run = tgrpo("gen-reward", "--task", TASK)
    said = [line for line in run.err.strip().splitlines() if "osmesa" not in line]
    assert run.code == 1 and len(said) == 1
    assert "no key" in run.err and "--from-file reward.py" in run.err and "--builtin" in run.err
    assert not (project / "data" / "probes").exists() and not (project / "data" / "rewards").exists()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "mine.py does not exist"),
        (
            "def compute_reward(state):\n    return 1.0\n",
            "mine.py, line 1: compute_reward(state) does not have the two",
        ),
        ("x = 1\n", "mine.py: no function compute_reward"),
        ("def compute_reward(state, info)\n    return 1\n", "mine.py, line 1: no valid Python"),
    ],
    ids=["no file", "wrong signature", "no function", "no Python"],
)
def test_a_file_is_judged_before_anything_is_recorded(
    tgrpo: Callable[..., Run], project: Path, text: str | None, says: str
) -> None:
    if text is not None:
        (project / "mine.py").write_text(text)
    run = tgrpo("gen-reward", "--task", TASK, "--from-file", "mine.py")
    assert run.code == 1 and len(run.err.strip().splitlines()) == 1 and says in run.err
    assert not (project / "data" / "probes").exists() and not (project / "data" / "rewards").exists()


def test_key_poses_need_a_demonstration_before_anything_is_recorded(tgrpo: Callable[..., Run], project: Path) -> None:
    without = tgrpo("gen-reward", "--task", TASK, "--builtin", "--set", "gen_reward.program=key_poses")
    assert without.code == 2 and "--demo" in without.err
    missing = tgrpo("gen-reward", "--task", TASK, "--builtin", "--demo", "nope.zarr")
    assert missing.code == 1 and "nope.zarr does not exist" in missing.err
    assert not (project / "data" / "probes").exists()


@pytest.mark.parametrize("task", ["libero_goal/3", "libero_10/9", "libero_spatial/0"])
def test_a_built_in_program_needs_neither_simulator_nor_meshes(params: Params, task: str) -> None:
    reward = built_in(params.model_copy(update={"task": task}))
    assert reward.task == task and "def compute_reward" in reward.source


def test_a_built_in_reward_that_is_shipped_as_verified_needs_no_recording(
    tgrpo: Callable[..., Run], project: Path
) -> None:
    run = tgrpo("gen-reward", "--task", "libero_object/6", "--builtin")
    assert run.code == 0 and run.handles[0]["verdict"].startswith("passed")
    assert (project / run.handles[0]["path"] / "reward.py").is_file()
    assert not (project / "data" / "probes").exists()


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("--builtin", "--from-file", "reward.py"), "name two programs"),
        (("--builtin", "--fresh"), "leave out --builtin"),
        (("--demo", "x.zarr"), "add --builtin"),
        (("--builtin", "--task", "libero_object/77"), "there is no task"),
    ],
)
def test_options_that_mean_nothing_together(tgrpo: Callable[..., Run], args: tuple[str, ...], says: str) -> None:
    run = tgrpo("gen-reward", *args)
    assert run.code == 2 and says in run.err
    assert len(run.err.strip().splitlines()) == 1


class Told(Silent):
    """Takes down what is reported."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    @contextmanager
    def bar(self, label: str, total: int) -> Iterator[Advance]:
        done: list[int] = []
        yield lambda steps, note: done.append(steps)
        self.lines.append(f"{label} {sum(done)}/{total}")

    def note(self, text: str) -> None:
        self.lines.append(text)


def test_each_reply_has_a_bar_of_its_own_and_retries_are_told() -> None:
    told = Told()
    telling = _Telling(told, 1000)
    telling(10, "writing")
    telling(0, "the connection was lost, asking again")
    for tokens in (40, 90, 1200):
        telling(tokens, "writing")
    telling.end()
    telling(30, "writing")
    telling.end()
    telling.end()
    assert told.lines == ["reply 10/1000", "the connection was lost, asking again", "reply 1000/1000", "reply 30/1000"]


@pytest.mark.slow
def test_a_reward_is_written_by_a_model_proven_and_trained_on(
    tgrpo: Callable[..., Run], project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole way. The first reply is refused by verification, the findings go back, the second one passes."""
    bad = f"Here it is.\n\n```python\n{HOVER}```\n"
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-secret")
    with Loopback(say(bad), say(GOOD_REPLY)) as server:
        monkeypatch.setenv("ANTHROPIC_BASE_URL", server.url)
        run = tgrpo("gen-reward", "--task", TASK, "--out", "data/rewards/0001")
        assert run.code == 0, run.err
        assert len(server.requests) == 2
        findings = server.requests[1].body["messages"][-1]["content"][0]["text"]
        assert "completion" in findings and "honest" in findings
        again = tgrpo("gen-reward", "--task", TASK, "--out", "data/rewards/0002")
        assert again.code == 0 and len(server.requests) == 2  # the same was asked before
        assert again.handles[0]["digest"] == run.handles[0]["digest"]  # and gives the same artifact
    reward = project / "data/rewards/0001"
    assert (reward / "verification.png").stat().st_size > 10_000
    assert json.loads((reward / "report.json").read_text())["passed"]
    assert sorted(path.name for path in (reward / "conversation" / "replies").iterdir()) == ["01.json", "02.json"]
    assert not any(b"sk-secret" in path.read_bytes() for path in project.rglob("*") if path.is_file())

    (project / "hover.py").write_text(HOVER)
    refused = tgrpo("gen-reward", "--task", TASK, "--from-file", "hover.py", "--out", "data/rewards/0003")
    assert refused.code == 1 and not (project / "data/rewards/0003").exists()
    assert (project / "data/rewards/refused/0003/findings.txt").is_file()
    again_refused = tgrpo("gen-reward", "--task", TASK, "--from-file", "hover.py", "--out", "data/rewards/0003")
    assert again_refused.code == 1 and (project / "data/rewards/refused/0003-2/report.json").is_file()

    with Loopback(say(bad)) as server:  # a model's program that is refused leaves its report too, and one line says why
        monkeypatch.setenv("ANTHROPIC_BASE_URL", server.url)
        out = ("--out", "data/rewards/0004", "--set", "gen_reward.rounds=1", "--fresh")
        hopeless = tgrpo("gen-reward", "--task", TASK, *out)
    assert hopeless.code == 1 and "completion" in hopeless.err.strip().splitlines()[-1]
    assert (project / "data/rewards/refused/0004/verification.png").is_file()
    assert not (project / "data/rewards/0004").exists()
    assert re.search(r"hover\.py is refused: \d+ of \d+ checks fail", refused.err)

    verified = tgrpo("verify-reward", str(reward))
    assert verified.code == 0 and verified.handles[0]["passed"] is True
    assert tgrpo("verify-reward", "hover.py", "--task", TASK).code == 1


@pytest.mark.slow
def test_the_two_part_reward_of_a_demonstration_is_proven(tgrpo: Callable[..., Run], project: Path) -> None:
    demos = tgrpo("demos", "--out", "data/demos", "--set", "demos.episodes=1", "--set", "demos.workers=1")
    assert demos.code == 0, demos.err
    run = tgrpo("gen-reward", "--builtin", "--demo", "data/demos/000.zarr")
    assert run.code == 0 and run.handles[0]["verdict"].startswith("passed: 13 checks"), run.err
    assert len(json.loads((project / run.handles[0]["path"] / "key_poses.json").read_text())) == 6
