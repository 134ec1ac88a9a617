import importlib.metadata
import importlib.util
import os
import sys
from pathlib import Path
from subprocess import PIPE, run

import pytest

from stages.errors import SimulatorError
from stages.sim import runtime
from stages.sim.cache import cache_dir

PREPARE = """
from stages.sim.runtime import prepare
from tests.sim.sample import SIM
prepare(SIM)
import libero.libero.envs, robosuite, os, sys
assert not {"OpenGL", "glfw"} & set(sys.modules)
assert [os.environ.get(name) for name in ("MUJOCO_GL", "CUDA_VISIBLE_DEVICES", "MUJOCO_EGL_DEVICE_ID")] == %r
"""


def _pretend(monkeypatch: pytest.MonkeyPatch, **versions: str) -> None:
    true_version = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: versions.get(name) or true_version(name))


def test_the_installed_versions_pass() -> None:
    runtime.check_versions()


@pytest.mark.parametrize("version", ["3.3.3", "3.4.0", "3.8.1", "3.2.7", "2.3.7"])
def test_other_mujocos_are_refused(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    _pretend(monkeypatch, mujoco=version)
    with pytest.raises(SimulatorError, match=rf"mujoco {version} is installed.*run: pip install mujoco==3\.3\.2"):
        runtime.check_versions()


def test_other_robosuites_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    _pretend(monkeypatch, robosuite="1.5.1")
    with pytest.raises(SimulatorError, match=r"robosuite 1\.5\.1.*run: pip install robosuite==1\.4\.0"):
        runtime.check_versions()


def test_missing_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    with pytest.raises(SimulatorError, match="mujoco is not installed"):
        runtime.check_versions()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SimulatorError, match=r"pip install --no-deps hf-libero==0\.1\.4"):
        runtime.check_versions()


@pytest.mark.parametrize(
    "variables",
    [
        (None, None, None),
        ("egl", "0", "1"),  # robosuite alone refuses to be imported when CUDA's devices do not name EGL's
        ("disable", "", "no number"),
        ("glx", None, None),
    ],
)
def test_prepare_loads_no_opengl_asks_nothing_and_says_nothing(tmp_path: Path, variables: tuple[str | None]) -> None:
    names = ("MUJOCO_GL", "CUDA_VISIBLE_DEVICES", "MUJOCO_EGL_DEVICE_ID")
    given = {name: value for name, value in zip(names, variables, strict=True) if value is not None}
    inherited = {name: value for name, value in os.environ.items() if name not in names}
    environment = {**inherited, **given, "TGRPO_CACHE": str(tmp_path), "HOME": str(tmp_path / "home")}
    command = [sys.executable, "-c", PREPARE % list(variables)]
    done = run(command, env=environment, stdin=PIPE, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (tmp_path / "libero" / "config.yaml").is_file()
    assert not (tmp_path / "home" / ".libero").exists()


def test_a_cache_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    environment = {**os.environ, "TGRPO_CACHE": str(tmp_path / "file")}
    done = run([sys.executable, "-c", PREPARE % []], env=environment, capture_output=True, text=True)
    assert "SimulatorError: the cache folder" in done.stderr
    assert "export TGRPO_CACHE=FOLDER" in done.stderr


def test_cache_dir(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/h")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("TGRPO_CACHE", raising=False)
    assert cache_dir() == Path("/h/.cache/tgrpo")
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert cache_dir() == Path("/x/tgrpo")
    monkeypatch.setenv("TGRPO_CACHE", "/t")
    assert cache_dir() == Path("/t")
