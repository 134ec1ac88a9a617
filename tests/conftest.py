"""What the tests share: the shipped params, the embedded checkpoint, and a short way to run the command line for real."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from stages.params import Params, load_params

ROOT = Path(__file__).parents[1]
SHORT = (  # 6 decisions an episode
    "rollout.max_env_steps=24",
    "eval.max_env_steps=24",
    "eval.videos=0",
    "train.validation.episodes=1",
)


@dataclass(frozen=True)
class Run:
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def handles(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.out.splitlines()]


@pytest.fixture
def params() -> Params:
    return load_params(ROOT / "params.yaml")


@pytest.fixture
def embedded() -> Path:
    """The base checkpoint that the repository ships."""
    params = load_params(ROOT / "params.yaml")
    return ROOT / params.policy.base_of(params.task)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder as a user has it: params.yaml, and the embedded checkpoint at the path that params name."""
    (tmp_path / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "embedded").symlink_to(ROOT / "data" / "embedded")
    return tmp_path


@pytest.fixture
def tgrpo(project: Path) -> Callable[..., Run]:
    """Runs `tgrpo ARGS...` as its own process in the project folder."""

    def run(*args: object, stdin: str | None = None, env: dict[str, str] | None = None) -> Run:
        done = subprocess.run(
            [sys.executable, "-m", "tgrpo_cli.main", *map(str, args)],
            cwd=project,
            env={**os.environ, **(env or {})},
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            text=True,
            timeout=300,
        )
        return Run(done.returncode, done.stdout, done.stderr)

    return run


@pytest.fixture
def tgrpo_here(
    project: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> Callable[..., Run]:
    """`tgrpo ARGS...` in this process, which has torch and the rest loaded, where processes of their own add nothing."""
    from tgrpo_cli.main import main

    def run(*args: object, stdin: str | None = None) -> Run:
        capfd.readouterr()
        given = Path(os.devnull)
        if stdin is not None:
            given = tmp_path_factory.mktemp("piped") / "stdin"
            given.write_text(stdin)
        with given.open() as source, monkeypatch.context() as patch:
            patch.setattr(sys, "stdin", source)
            patch.chdir(project)
            patch.setattr(sys, "argv", ["tgrpo", *map(str, args)])
            with pytest.raises(SystemExit) as ended:
                main()
        code = ended.value.code
        return Run(code if isinstance(code, int) else int(code is not None), *capfd.readouterr())

    return run


def short(*extra: str) -> list[str]:
    """--set options that keep an episode to a few decisions."""
    return [part for item in (*SHORT, *extra) for part in ("--set", item)]
