import os
from collections.abc import Callable
from pathlib import Path

import pytest

from stages.rewards.interface import Context
from stages.rewards.llm.client import Client, Progress
from stages.rewards.llm.prompt import GenerationRequest
from stages.rewards.llm.settings import LlmSettings
from stages.sim.runtime import libero_root
from stages.sim.tasks import load_task, task_object_names
from tests.rewards.llm.loopback import Loopback

KEY = "sk-test-9f31c0ffee"


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A key, and nothing else of this machine that the official client would find."""
    for name in [name for name in os.environ if name.startswith("ANTHROPIC_")]:
        monkeypatch.delenv(name)
    for name in ("HOME", "XDG_CONFIG_HOME"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def connect(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Client]:
    """A client for a loopback server, quick to try again."""

    def connect(server: Loopback, progress: Progress | None = None, **changes: object) -> Client:
        monkeypatch.setenv("ANTHROPIC_BASE_URL", server.url)
        return Client(quick(**changes), progress, pause_s=0.001)

    return connect


def quick(**changes: object) -> LlmSettings:
    """Settings with two retries."""
    return LlmSettings(**{"max_retries": 2, "timeout_s": 30.0, **changes})  # type: ignore[arg-type]


def request_for(task_id: str = "libero_object/7", goal: tuple[str, ...] = ()) -> GenerationRequest:
    task = load_task(task_id)
    goal = goal or ("in", "milk_1", "basket_1_contain_region")
    context = Context(
        task=task.id,
        object_names=task_object_names(task),
        joint_names=("wooden_cabinet_1_top_level",) if "goal" in task_id else (),
        joint_ranges=((-0.16, 0.01),) if "goal" in task_id else (),
        place_names=goal[2:] if goal[-1].endswith("region") else (),
        goals=(goal,),
        max_steps=task.max_env_steps,
    )
    return GenerationRequest(task.language, task.bddl_file.read_text(), context, libero_root())
