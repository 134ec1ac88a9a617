"""What doctor says about renderers. That it says all is well, here, is in test_pipeline.py."""

from collections.abc import Callable

import pytest
import torch

from stages import doctor
from stages.doctor import FAILURE, OK, WARNING, Check, examine
from stages.params import Params
from stages.policy import fused
from stages.sim import golden
from stages.sim.backends import Drawing
from stages.sim.egl import EglDevice
from stages.sim.golden import GoldenFrame
from tests.conftest import Run


def _golden_check(monkeypatch: pytest.MonkeyPatch, mean: float, largest: int, renderer: str = "llvmpipe") -> Check:
    """The line about a renderer whose golden frame differs so much."""
    drawn_by = Drawing(renderer, "Mesa 22", (EglDevice(0, "NVIDIA, CUDA device 0", False),))
    frame = GoldenFrame(drawn_by, "llvmpipe, Mesa 22", mean, largest, 133.4 - mean, 133.4)
    monkeypatch.setattr(golden, "check_golden_frame", lambda backend, egl_device: frame)
    return doctor._golden_frame("egl", None)


def test_an_equal_frame_lists_the_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    check = _golden_check(monkeypatch, 0.0, 0)
    assert check.severity == OK
    assert "devices 0 (NVIDIA, CUDA device 0)" in check.found
    assert "equal in every byte" in check.found


def test_another_renderer_may_differ_a_little(monkeypatch: pytest.MonkeyPatch) -> None:
    check = _golden_check(monkeypatch, 0.7, 60, "NVIDIA H100")
    assert check.severity == OK
    assert "differs by 0.7 of 255 in the mean, 60 at most (limit 6)" in check.found


def test_the_same_renderer_may_not(monkeypatch: pytest.MonkeyPatch) -> None:
    check = _golden_check(monkeypatch, 0.01, 1)
    assert check.severity == WARNING
    assert "though the same software drew the reference" in check.found


def test_darker_floors_are_a_failure_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    """The figures are those of mujoco 3.3.3."""
    check = _golden_check(monkeypatch, 37.0, 64)
    assert check.severity == FAILURE
    assert "brightness is 96.4, expected 133.4" in check.found
    assert "mujoco 3.3.2" in check.found


def test_a_renderer_that_is_not_used_may_fail(params: Params) -> None:
    """Neither backend can draw on a GPU that is not there; OSMesa does not look for one."""
    checks = {
        sim_renderer: {
            check.name: check
            for check in doctor._renderers(
                params.sim.model_copy(update={"renderer": sim_renderer, "egl_device": 99}),
            )
        }
        for sim_renderer in ("osmesa", "egl")
    }
    assert checks["osmesa"]["renderer osmesa"].severity == OK
    assert checks["osmesa"]["renderer egl"].severity == WARNING
    assert checks["osmesa"]["renderer"].found == "sim.renderer=osmesa -> osmesa"
    assert checks["egl"]["renderer egl"].severity == FAILURE
    assert checks["egl"]["renderer egl"].found.endswith("--set sim.renderer=osmesa")


def test_the_refused_versions_are_named_while_the_installed_one_is_fine(params: Params) -> None:
    simulator = next(check for check in examine(params) if check.name == "simulator")
    assert simulator.severity == OK
    assert "mujoco is held at 3.3.0 to 3.3.2: 3.3.3 and later draw LIBERO's floors darker" in simulator.found


def test_a_refused_mujoco_fails(
    params: Params, tgrpo: Callable[..., Run], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A package folder in front of the installed ones claims a newer version."""
    folder = tmp_path_factory.mktemp("newer")
    (folder / "mujoco-3.8.1.dist-info").mkdir()
    (folder / "mujoco-3.8.1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: mujoco\nVersion: 3.8.1\n")
    run = tgrpo("doctor", env={"PYTHONPATH": str(folder)})
    assert run.code == 1
    assert "FAIL simulator          mujoco 3.8.1 is installed, but LIBERO needs 3.3.0 to 3.3.2" in run.out
    assert "pip install mujoco==3.3.2" in run.out


def test_a_gpu_without_a_compiler_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails() -> None:
        raise RuntimeError("Failed to find C compiler.")

    assert torch.cuda.is_available() or not list(doctor._kernels())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(fused, "_loaded", fails)
    fused.available.cache_clear()
    try:
        (check,) = doctor._kernels()
        assert check.severity == WARNING and "apt install gcc" in check.found
    finally:
        fused.available.cache_clear()
