"""Renderers, each in a process of its own: which is chosen, on which device, and what is said when one does not work."""

import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from stages.errors import SimulatorError
from stages.sim import backends, golden
from stages.sim.backends import Drawing, choose_backend, probe_renderer, run_in_child
from stages.sim.golden import check_golden_frame, compare

ROOT = Path(__file__).parents[2]


def _egl_works() -> bool:
    """Asks mujoco alone, so that a mistake of ours is no reason to skip."""
    code = "import mujoco, os; mujoco.GLContext(16, 16).make_current(); os._exit(0)"
    names = ("PYOPENGL_PLATFORM", "MUJOCO_EGL_DEVICE_ID")
    environment = {name: value for name, value in os.environ.items() if name not in names} | {"MUJOCO_GL": "egl"}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True).returncode == 0


needs_egl = pytest.mark.skipif(not _egl_works(), reason="EGL does not work here")
each_backend = pytest.mark.parametrize("backend", ["osmesa", pytest.param("egl", marks=needs_egl)])


def _child(code: str, **environment: str) -> str:
    """What a fresh process prints; it must say nothing on stderr."""
    inherited = {
        name: value for name, value in os.environ.items() if name != "PYOPENGL_PLATFORM"
    }  # a test has drawn here
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env={**inherited, **environment}, capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done.stdout.strip()


CONTEXT = """
from stages.errors import SimulatorError
from stages.sim.backends import make_context
try:
    make_context({backend!r}, 16)
except SimulatorError as error:
    print(error)
"""


@each_backend
def test_a_backend_draws_the_golden_frame(backend: backends.Backend) -> None:
    frame = check_golden_frame(backend)
    assert frame.same
    assert not frame.exact_expected or frame.largest_difference == 0


def test_the_golden_frame_is_seen_to_be_darker() -> None:
    """What mujoco 3.3.3 draws is no other picture, only a darker floor."""
    from PIL import Image

    picture = np.asarray(Image.open(golden.PICTURE).convert("RGB"))
    drawn_by = Drawing("some GPU", "4.6", ())
    assert compare(picture, drawn_by).same
    nearly = compare(np.clip(picture.astype(int) + 2, 0, 255).astype(np.uint8), drawn_by)
    assert nearly.same and not nearly.exact_expected and nearly.largest_difference == 2
    darker = compare((picture * (99 / 135)).astype(np.uint8), drawn_by)
    assert not darker.same
    assert 30 < darker.mean_difference < 40


LIBERO_BESIDE_OURS = """
import numpy as np
from stages.sim.assets import resolve_assets
from stages.sim.env import LiberoEnv
from stages.sim.runtime import prepare
from stages.sim.tasks import official_states
from tests.sim.sample import SIM, TASK

sim = SIM.benchmark().model_copy(update={"renderer": BACKEND, "image_size": 64})
env = LiberoEnv(TASK, sim, resolve_assets(sim))
state = official_states(TASK)[0]
env.set_state(state)
ours = env.render()
env.close()
prepare(sim, resolve_assets(sim).path, liberos_renderer=True)
from libero.libero.envs.env_wrapper import OffScreenRenderEnv
theirs = OffScreenRenderEnv(bddl_file_name=str(TASK.bddl_file), camera_heights=64, camera_widths=64)
theirs.seed(0)
theirs.reset()
image = theirs.set_init_state(state)["agentview_image"]
print(image.shape, np.abs(image[::-1, ::-1].astype(int) - ours).mean() < 12)
import os
os._exit(0)
"""


@each_backend
def test_liberos_own_renderer_can_be_lent_a_backend_afterwards(backend: str) -> None:
    """The robot's meshes differ, the primitive set has coarse ones; the rest of the picture is the same."""
    assert _child(LIBERO_BESIDE_OURS.replace("BACKEND", repr(backend))) == "(64, 64, 3) True"


FORK = """
import os
from stages.sim.assets import resolve_assets
from stages.sim.env import LiberoEnv
from stages.sim.tasks import official_states
from tests.sim.sample import SIM, TASK
sim = SIM.model_copy(update={"renderer": BACKEND})
env = LiberoEnv(TASK, sim, resolve_assets(sim))
env.set_state(official_states(TASK)[0])
for _ in range(2):
    child = os.fork()
    if child == 0:
        print(env.render().mean(), flush=True)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
"""


@each_backend
def test_an_environment_that_has_not_rendered_can_be_forked(backend: str) -> None:
    first, second = _child(FORK.replace("BACKEND", repr(backend))).splitlines()
    assert first == second
    assert float(first) > 50


@needs_egl
@pytest.mark.parametrize("device", ["7", "-1", "two", ""])
def test_a_gpu_that_is_not_there_is_one_line_with_those_that_are(device: str) -> None:
    said = _child(CONTEXT.format(backend="egl"), MUJOCO_EGL_DEVICE_ID=device)
    assert said.startswith(
        f"there is no GPU {device!r} to render on, which sim.egl_device or MUJOCO_EGL_DEVICE_ID names"
    )
    assert "EGL knows 0 (" in said
    assert said.endswith("--set sim.renderer=osmesa")
    assert len(said.splitlines()) == 1


@needs_egl
def test_the_device_of_the_params_comes_before_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUJOCO_EGL_DEVICE_ID", "7")
    with pytest.raises(SimulatorError, match="no GPU '7'"):
        run_in_child("stages.sim.backends", "egl")
    run_in_child("stages.sim.backends", "egl", egl_device=0)


@needs_egl
def test_a_process_keeps_to_the_opengl_that_it_has_loaded() -> None:
    said = _child("import mujoco\n" + CONTEXT.format(backend="osmesa"), MUJOCO_GL="egl")
    assert "has loaded OpenGL for egl; unset MUJOCO_GL" in said
    assert _child("import mujoco\n" + CONTEXT.format(backend="egl"), MUJOCO_GL="egl", PYOPENGL_PLATFORM="egl") == ""


@needs_egl
@pytest.mark.parametrize("variable", ["egl", "nonsense"])
def test_what_the_user_has_set_for_mujoco_does_not_matter_to_a_named_renderer(variable: str) -> None:
    code = "import stages.sim.env, os\n" + CONTEXT.format(backend="osmesa") + "\nprint(os.environ['MUJOCO_GL'])"
    assert _child(code, MUJOCO_GL=variable) == variable


@needs_egl
def test_a_platform_that_the_user_has_set_for_pyopengl_does_not_matter() -> None:
    assert _child(CONTEXT.format(backend="osmesa"), PYOPENGL_PLATFORM="egl") == ""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to hide a library")
@pytest.mark.parametrize(
    ("backend", "library", "remedy"),
    [
        ("osmesa", "libOSMesa.so.8", "apt-get install libosmesa6"),
        pytest.param("egl", "libEGL.so.1", "--set sim.renderer=osmesa", marks=needs_egl),
        pytest.param("egl", "libEGL_mesa.so.0", "--set sim.renderer=osmesa", marks=needs_egl),
    ],
)
def test_a_backend_that_is_not_installed(backend: str, library: str, remedy: str) -> None:
    file = next(iter(Path("/usr/lib").glob(f"*-linux-gnu/{library}")), None)
    if file is None:
        pytest.skip(f"{library} is elsewhere")
    hide = f"mount --bind /dev/null {file.resolve()} && exec {sys.executable} -m stages.sim.backends {backend}"
    done = subprocess.run(["unshare", "-m", "sh", "-c", hide], capture_output=True, text=True, cwd=ROOT)
    if "unshare" in done.stderr or "mount" in done.stderr:
        pytest.skip("cannot mount here")
    assert f"the renderer {backend} does not start" in done.stdout
    assert remedy in done.stdout
    assert done.stderr == ""


def test_an_unknown_renderer() -> None:
    with pytest.raises(SimulatorError, match="there is no renderer 'glx'; known are osmesa, egl"):
        probe_renderer("glx")


def test_a_child_that_breaks_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_probe.py").write_text("raise ImportError('no library')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(SimulatorError, match=r"egl does not work here \(ImportError: no library\); install the GPU's"):
        run_in_child("broken_probe", "egl")


@pytest.fixture
def no_choice_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    backends._found_backend.cache_clear()


def test_the_users_choice_is_kept(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("MUJOCO_GL", "egl")
    assert choose_backend("auto") == "egl"
    assert choose_backend("osmesa") == "osmesa"
    assert caplog.messages == []


@pytest.mark.usefixtures("no_choice_yet")
def test_auto_without_a_gpu_says_once_that_it_draws_in_software(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(backends, "_GPU_FILES", ())
    assert [choose_backend("auto"), choose_backend("auto")] == ["osmesa", "osmesa"]
    assert caplog.messages == ["images are drawn in software (osmesa): there is no GPU here"]


@needs_egl
@pytest.mark.usefixtures("no_choice_yet")
def test_auto_warns_of_a_gpu_that_does_not_draw(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Where EGL has nothing but Mesa's software, a file like a GPU's stands for a GPU without a driver."""
    if not probe_renderer("egl").software:
        pytest.skip("EGL draws on a GPU here")
    monkeypatch.setattr(backends, "_GPU_FILES", ("null",))
    assert [choose_backend("auto"), choose_backend("auto")] == ["osmesa", "osmesa"]
    (message,) = caplog.messages
    assert "though there is a GPU: EGL draws with llvmpipe" in message
    assert "its devices are 0 (Mesa in software)" in message
