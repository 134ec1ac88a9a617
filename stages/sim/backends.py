"""Which OpenGL draws images off screen here: EGL, on a GPU, or OSMesa, in software. And how a context of it is made.

mujoco and robosuite would decide this by environment variables when they are first imported, and robosuite insists that
two of these agree. Here they are imported without OpenGL (`runtime.prepare`) and the first context decides, so a process
that has not rendered yet has opened no display and can be forked.
"""

import contextlib
import functools
import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from stages.errors import SimulatorError
from stages.sim.egl import EGL_DEVICE_VARIABLE, EGL_REMEDY, EglDevice, egl_context, egl_devices

Backend = Literal["egl", "osmesa"]

_REMEDY = {"osmesa": "install it: apt-get install libosmesa6", "egl": EGL_REMEDY}
_GPU_FILES = ("nvidia[0-9]*", "dri/renderD*", "dxg")  # under /dev: NVIDIA, any GPU with a kernel driver, WSL
_SOFTWARE = ("llvmpipe", "softpipe", "swrast")  # Mesa's software renderers
_PROBE_TIMEOUT = 60.0
_SPHERE = '<mujoco><worldbody><light pos="0 0 3"/><geom size="1" group="1"/><camera pos="0 0 4"/></worldbody></mujoco>'

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Drawing:
    """What draws, in OpenGL's words, such as `llvmpipe (LLVM 15.0.6, 256 bits)` and `4.5 ... Mesa 22.3.6`."""

    renderer: str
    version: str
    devices: tuple[EglDevice, ...]  # what there is to choose from; none for OSMesa

    @property
    def software(self) -> bool:
        return any(name in self.renderer.lower() for name in _SOFTWARE)


def choose_backend(renderer: Literal["auto", "osmesa", "egl"]) -> Backend:
    """The backend that `sim.renderer` means here.

    `auto` keeps a `MUJOCO_GL` of egl or osmesa that the user has set; else it takes EGL where that draws on a GPU, else
    OSMesa, and says so once a process: logged as information, as a warning where a GPU is left unused.
    """
    if renderer != "auto":
        return renderer
    chosen = os.environ.get("MUJOCO_GL", "").lower().strip()
    if chosen in ("egl", "osmesa"):
        return "egl" if chosen == "egl" else "osmesa"
    return _found_backend()


def make_context(backend: Backend, size: int) -> Any:
    """An OpenGL context of this process and thread, for images of up to `size` pixels, square.

    It has `make_current()` and `free()`. All contexts of a process are of one backend, and EGL's of one device:
    `MUJOCO_EGL_DEVICE_ID`, else the first that can be opened.

    Raises:
        SimulatorError: the backend is not installed, there is no such device, or the process has loaded another backend.
    """
    _bind_opengl(backend)
    try:
        if backend == "egl":
            return egl_context(size)
        from mujoco.osmesa import GLContext

        return GLContext(size, size)
    except SimulatorError:
        raise
    except Exception as error:  # PyOpenGL raises whatever went wrong inside, down to AttributeError
        raise SimulatorError(f"the renderer {backend} does not start ({_text(error)}); {_REMEDY[backend]}") from None


def lend_robosuite(backend: Backend) -> None:
    """Gives robosuite, which `prepare` imports without OpenGL, a backend to render with after all."""
    from robosuite.utils import binding_utils

    _bind_opengl(backend)
    if backend == "egl":
        # Without it robosuite takes the numbers in CUDA_VISIBLE_DEVICES, which are CUDA's, for places in EGL's list.
        os.environ.setdefault(EGL_DEVICE_VARIABLE, "0")
        from robosuite.renderers.context.egl_context import EGLGLContext as GLContext
    else:
        from robosuite.renderers.context.osmesa_context import OSMesaGLContext as GLContext
    binding_utils.GLContext = GLContext


def drawing(backend: Backend) -> Drawing:
    """What draws in this process, which must have a current context."""
    from OpenGL import GL

    strings = [(GL.glGetString(key) or b"unknown").decode() for key in (GL.GL_RENDERER, GL.GL_VERSION)]
    return Drawing(strings[0], strings[1], egl_devices() if backend == "egl" else ())


def probe_renderer(name: str) -> Drawing:
    """Draws one small image with a backend, in a process of its own: a failed start would poison this one.

    Raises:
        SimulatorError: `name` is no backend, or it does not work here; the message holds its complaint and the remedy.
    """
    if name not in _REMEDY:
        raise SimulatorError(f"there is no renderer {name!r}; known are {', '.join(_REMEDY)}")
    return drawing_from(run_in_child(__name__, name))


def drawing_from(record: dict[str, Any]) -> Drawing:
    """The `Drawing` that became JSON in `record`."""
    return Drawing(record["renderer"], record["version"], tuple(EglDevice(**entry) for entry in record["devices"]))


def run_in_child(module: str, backend: str, egl_device: int | None = None) -> dict[str, Any]:
    """Runs `python -m MODULE BACKEND`, a module that ends in `answer_parent`, and returns its answer.

    `egl_device` is as `sim.egl_device`: None leaves the choice to `MUJOCO_EGL_DEVICE_ID`.

    Raises:
        SimulatorError: what the child raised, or how it ended.
    """
    environment = {**os.environ, "MUJOCO_GL": "disable"}
    environment.pop("PYOPENGL_PLATFORM", None)
    if egl_device is not None:
        environment[EGL_DEVICE_VARIABLE] = str(egl_device)
    command = [sys.executable, "-m", module, backend]
    try:
        child = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=_PROBE_TIMEOUT)
    except subprocess.TimeoutExpired:
        complaint = f"no image after {_PROBE_TIMEOUT:.0f} s"
    else:
        with contextlib.suppress(ValueError, IndexError):
            answer: dict[str, Any] = json.loads(child.stdout.splitlines()[-1])
            if "error" in answer:
                raise SimulatorError(answer["error"])
            return answer
        lines = [line for line in child.stderr.splitlines() if line and not line.startswith(" ")]
        complaint = lines[-1] if lines else f"exit status {child.returncode}"
    raise SimulatorError(f"the renderer {backend} does not work here ({complaint}); {_REMEDY[backend]}")


def answer_parent(work: Callable[[Backend], dict[str, Any]]) -> None:
    """What a module that `run_in_child` runs ends with: the answer of `work`, or its error, as one line of JSON."""
    try:
        answer = work("egl" if sys.argv[1] == "egl" else "osmesa")
    except SimulatorError as error:
        answer = {"error": str(error)}
    print(json.dumps(answer), flush=True)
    os._exit(0)  # leaves out what drivers do at exit, which may complain or hang


@functools.cache
def _found_backend() -> Backend:
    if not any(any(Path("/dev").glob(pattern)) for pattern in _GPU_FILES):
        _logger.info("images are drawn in software (osmesa): there is no GPU here")
        return "osmesa"
    try:
        found = probe_renderer("egl")
    except SimulatorError as error:
        _logger.warning("images are drawn in software (osmesa), though there is a GPU: %s", error)
        return "osmesa"
    if found.software:
        _logger.warning(
            "images are drawn in software (osmesa), though there is a GPU: EGL draws with %s, its devices are %s;"
            " install the GPU's driver for EGL, or choose another device with sim.egl_device",
            found.renderer,
            ", ".join(map(str, found.devices)),
        )
        return "osmesa"
    _logger.info("images are drawn by %s (egl)", found.renderer)
    return "egl"


def _bind_opengl(backend: Backend) -> None:
    """PyOpenGL binds a process to one platform when it is first imported."""
    if "OpenGL.platform" not in sys.modules:
        os.environ["PYOPENGL_PLATFORM"] = backend
    try:
        import OpenGL.platform
    except Exception as error:
        raise SimulatorError(f"the renderer {backend} does not start ({_text(error)}); {_REMEDY[backend]}") from None
    bound = type(OpenGL.platform.PLATFORM).__name__.removesuffix("Platform").lower()
    if bound != backend:
        raise SimulatorError(
            f"the renderer {backend} cannot start, because this process has loaded OpenGL for {bound}; unset MUJOCO_GL,"
            f" which does that when mujoco is imported, or choose --set sim.renderer={bound}"
        )


def _text(error: Exception) -> str:
    try:
        text = " ".join(str(error).split())
    except Exception:  # some of PyOpenGL's errors cannot be printed
        text = ""
    return f"{type(error).__name__}: {text:.200}" if text else type(error).__name__


def _draw_sphere(backend: Backend) -> dict[str, Any]:
    from stages.sim.glfree import mujoco
    from stages.sim.renderer import Renderer

    model = mujoco.MjModel.from_xml_string(_SPHERE)
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    renderer = Renderer(model, backend, size=16, shadows=False, multisampling=0)
    if not renderer.render(data, 0, 16).any():
        raise SimulatorError(f"the renderer {backend} draws black images; {_REMEDY[backend]}")
    return asdict(drawing(backend))


if __name__ == "__main__":
    answer_parent(_draw_sphere)
