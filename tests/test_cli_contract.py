"""Commands, DVC stages and params sections are one list; every command explains itself; nothing heavy loads for help."""

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from typer.main import get_command

from stages.params import Params
from tests.conftest import Run
from tgrpo_cli.main import app

ROOT = Path(__file__).parents[1]
TOOLS = {
    "train",
    "inspect",
    "replay",
    "rescore",
    "verify-reward",
    "bench",
    "doctor",
    "export",
    "parity",
    "compare",
    "paper",
}  # commands that are no stage of the pipeline
SHARED = {"seed", "task", "sim", "policy", "loop"}  # params that several stages read, and DVC's own
COMMANDS = sorted(get_command(app).commands)  # type: ignore[attr-defined]


def test_commands_are_dvc_stages_are_params_sections() -> None:
    stages = set(yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"])
    sections = {name.replace("_", "-") for name in Params.model_fields} - SHARED
    assert set(COMMANDS) - TOOLS == stages
    assert sections - {"train"} == stages


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_an_example_and_the_docs_know_the_command(command: str) -> None:
    help_text = get_command(app).commands[command].help  # type: ignore[attr-defined]
    assert f"Example:\n\n    tgrpo {command}" in help_text or f"| tgrpo {command}" in help_text
    assert f"tgrpo {command}" in (ROOT / "README.md").read_text()
    assert f"tgrpo {command}" in (ROOT / "docs" / "architecture.md").read_text()


def test_help_is_there_at_once_and_loads_nothing_heavy() -> None:
    code = (
        "import sys; from tgrpo_cli.main import app\n"
        "try: app(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'mujoco', 'libero', 'numpy', 'zarr', 'pydantic', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    seconds = []
    for _ in range(3):
        start = time.monotonic()
        subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
        seconds.append(time.monotonic() - start)
    assert min(seconds) < 0.8  # 0.4 s on an idle machine; the rest is room for a busy one


def test_advantage_needs_neither_torch_nor_the_simulator() -> None:
    code = (
        "import sys, stages.advantage; print(sorted({'torch', 'transformers', 'mujoco', 'libero'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("args", "stdin", "code", "says"),
    [
        (["rollout", "--task", "libero_object/99"], None, 2, "libero_object has 10 tasks"),
        (["rollout", "--checkpoint", "nowhere"], None, 1, "nowhere does not exist"),
        (["rollout", "--set", "sim.image_size=64"], None, 1, "was made for sim.image_size = 96"),
        (["rollout", "--stop", "never"], None, 2, "'first' or 'each'"),
        (["rollout", "--params", "other.yaml"], None, 2, "other.yaml does not exist"),
        (["advantage"], "", 2, "no handle on stdin"),
        (["advantage"], "what\n", 2, "is no handle"),
        (["advantage", "nowhere.zarr"], None, 1, "nowhere.zarr does not exist"),
        (["advantage", "data/embedded/openvla-tiny/libero_object/6"], None, 2, "of kind 'checkpoint'"),
        (["update"], '{"kind": "group", "path": "x", "digest": "0"}\n', 2, "expected advantages"),
        (["sft", "data/embedded/openvla-tiny/libero_object/6"], None, 2, "of kind 'checkpoint'"),
        (["eval", "data"], None, 1, "no whole artifact"),
        (["compare", "data", "--json", "nowhere/x.json"], None, 2, "there is no folder nowhere"),
        (["inspect", "nowhere"], None, 1, "nowhere does not exist"),
        (["gen-reward", "--task", "libero_goal/10"], None, 2, "there is no task libero_goal/10"),
    ],
)
def test_bad_input_is_one_line_with_the_remedy(
    tgrpo: Callable[..., Run], args: list[str], stdin: str | None, code: int, says: str
) -> None:
    run = tgrpo(*args, stdin=stdin)
    assert run.code == code, run.err
    assert says in run.err
    assert "Traceback" not in run.err
    assert len(run.err.strip().splitlines()) == 1
    assert run.out == ""
