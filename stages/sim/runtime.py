"""Brings the process into the state that mujoco, robosuite and LIBERO need, before any of them is imported.

Nothing heavy is imported at the top, so `tgrpo doctor` and the listing of tasks can use this module at no cost.
"""

import contextlib
import fcntl
import functools
import importlib.metadata
import importlib.util
import io
import logging
import os
import subprocess
import sys
import tempfile
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from stages.errors import SimulatorError
from stages.params import SimParams
from stages.sim.cache import cache_dir

Backend = Literal["egl", "osmesa"]

WORKER_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "LP_NUM_THREADS": "0"}
"""One worker uses one core: more threads in BLAS or in Mesa's software renderer only fight over the same cores."""

_PROBE_TIMEOUT = 60.0
_PROBE = """
import mujoco
xml = '<mujoco><worldbody><light pos="0 0 3"/><geom size="1"/><camera name="c" pos="0 0 4"/></worldbody></mujoco>'
model = mujoco.MjModel.from_xml_string(xml)
data = mujoco.MjData(model)
mujoco.mj_forward(model, data)
renderer = mujoco.Renderer(model, 16, 16)
renderer.update_scene(data, "c")
assert renderer.render().any(), "the rendered image is black"
"""
_RENDERER_REMEDY = {
    "osmesa": "apt-get install libosmesa6",
    "egl": "install the GPU's driver, or choose the software renderer: --set sim.renderer=osmesa",
}


def prepare(sim: SimParams, assets_path: Path | None = None) -> None:
    """Makes robosuite and LIBERO importable here: versions, renderer, configuration and assets folder. May be repeated.

    Args:
        sim: its `renderer` decides `MUJOCO_GL`.
        assets_path: the folder from which LIBERO shall load its models, or None to leave LIBERO to find one.

    Raises:
        SimulatorError: a missing package, a refused version, no renderer, or a cache folder that cannot be written.
    """
    check_versions()
    os.environ["MUJOCO_GL"] = choose_backend(sim.renderer)
    os.environ.setdefault("LP_NUM_THREADS", WORKER_ENVIRONMENT["LP_NUM_THREADS"])
    try:
        _configure_caches()
    except OSError as error:
        raise SimulatorError(
            f"the cache folder {cache_dir()} cannot be written ({error.strerror});"
            " choose another: export TGRPO_CACHE=FOLDER"
        ) from None
    # Without a module of this name robosuite logs warnings and opens /tmp/robosuite.log, which may be another user's.
    sys.modules.setdefault("robosuite.macros_private", types.ModuleType("robosuite.macros_private"))
    with quiet():
        try:
            import libero.libero
        except ImportError as error:
            raise SimulatorError(
                f"LIBERO cannot be imported ({error}); run: pip install -e . -c constraints.txt"
            ) from None
    if assets_path is not None:
        libero.libero._assets_path_cache = str(assets_path)


def check_versions() -> None:
    """Refuses simulator packages that are missing or known to give other results.

    From mujoco 3.3.3 on LIBERO's floors render darker (OpenVLA falls from 88% to 68% on LIBERO-Object,
    openvla#282), and from 3.4.0 on some stored initial states no longer settle (RLinf#1460).

    Raises:
        SimulatorError: names the package, what was found, what is expected and the command that mends it.
    """
    libero_root()
    mujoco = _version("mujoco", "pip install mujoco==3.3.2")
    if mujoco[:2] != (3, 3) or mujoco > (3, 3, 2):
        raise SimulatorError(
            f"mujoco {'.'.join(map(str, mujoco))} is installed, but LIBERO needs 3.3.0 to 3.3.2: newer ones render"
            " darker floors, which cost OpenVLA 20 points of success; run: pip install mujoco==3.3.2"
        )
    robosuite = _version("robosuite", "pip install robosuite==1.4.0")
    if robosuite[:2] != (1, 4):
        raise SimulatorError(
            f"robosuite {'.'.join(map(str, robosuite))} is installed, but LIBERO needs 1.4;"
            " run: pip install robosuite==1.4.0"
        )


def libero_root() -> Path:
    """The folder of the installed `libero.libero` package, which holds its task files; found without importing it.

    Raises:
        SimulatorError: hf-libero is not installed.
    """
    spec = importlib.util.find_spec("libero")
    for location in (spec and spec.submodule_search_locations) or []:
        root = Path(location) / "libero"
        if (root / "bddl_files").is_dir():
            return root
    raise SimulatorError("LIBERO is not installed; run: pip install --no-deps hf-libero==0.1.4")


def choose_backend(renderer: Literal["auto", "osmesa", "egl"]) -> Backend:
    """The OpenGL backend that `sim.renderer` means here.

    `auto` keeps a `MUJOCO_GL` that the user has set, takes EGL on a machine with a GPU where it works, else OSMesa.
    """
    if renderer != "auto":
        return renderer
    if (chosen := os.environ.get("MUJOCO_GL", "").lower()) in ("egl", "osmesa"):
        return "egl" if chosen == "egl" else "osmesa"
    return _probed_backend()


def probe_renderer(name: str) -> None:
    """Renders one small image with an OpenGL backend, in a process of its own, which a failed start would poison.

    Raises:
        SimulatorError: `name` is no backend, or it does not work here; the message holds its complaint and the remedy.
    """
    if name not in _RENDERER_REMEDY:
        raise SimulatorError(f"there is no renderer {name!r}; known are {', '.join(_RENDERER_REMEDY)}")
    environment = {**os.environ, **WORKER_ENVIRONMENT, "MUJOCO_GL": name}
    environment.pop("PYOPENGL_PLATFORM", None)
    try:
        probe = subprocess.run(
            [sys.executable, "-c", _PROBE], env=environment, capture_output=True, text=True, timeout=_PROBE_TIMEOUT
        )
    except subprocess.TimeoutExpired:
        complaint = f"no image after {_PROBE_TIMEOUT:.0f} s"
    else:
        if probe.returncode == 0:
            return
        lines = [line for line in probe.stderr.splitlines() if line and not line.startswith((" ", "Exception ignored"))]
        complaint = lines[-1] if lines else f"exit status {probe.returncode}"
    raise SimulatorError(f"the renderer {name} does not work here ({complaint}); {_RENDERER_REMEDY[name]}")


@contextlib.contextmanager
def first_compilation() -> Iterator[None]:
    """Holds back all processes but one until robosuite's numba functions have been compiled into the cache once.

    The compilation takes a core 10 s, and workers that start together would each do it. Build and step inside.
    """
    folder = Path(os.environ["NUMBA_CACHE_DIR"])
    done = folder / f"compiled-{sys.implementation.cache_tag}-{importlib.metadata.version('numba')}"
    if done.exists():
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if done.exists():
            fcntl.flock(lock, fcntl.LOCK_UN)
        yield
        done.touch()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Swallows what Python code prints to stdout (where handles go) and stderr while LIBERO is imported or built."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


@functools.cache
def _probed_backend() -> Backend:
    if not any(Path("/dev").glob("nvidia[0-9]*")) and not any(Path("/dev/dri").glob("renderD*")):
        return "osmesa"
    try:
        probe_renderer("egl")
    except SimulatorError as error:
        logging.getLogger(__name__).warning("there is a GPU, but %s; rendering in software instead", error)
        return "osmesa"
    return "egl"


def _version(package: str, remedy: str) -> tuple[int, ...]:
    try:
        text = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        raise SimulatorError(f"{package} is not installed; run: {remedy}") from None
    return tuple(int(part) for part in text.split(".")[:3] if part.isdigit())


def _configure_caches() -> None:
    """LIBERO asks on stdin where its files are unless a config.yaml says so; numba caches beside read-only sources."""
    root = libero_root()
    folder = cache_dir() / "libero"
    folder.mkdir(parents=True, exist_ok=True)
    places = {"bddl_files": "bddl_files", "init_states": "init_files", "datasets": "datasets", "assets": "assets"}
    text = "".join(f"{key}: {root / name}\n" for key, name in places.items()) + f"benchmark_root: {root}\n"
    config = folder / "config.yaml"
    if not config.is_file() or config.read_text() != text:
        with tempfile.NamedTemporaryFile("w", dir=folder, delete=False) as file:
            file.write(text)
        os.replace(file.name, config)
    os.environ["LIBERO_CONFIG_PATH"] = str(folder)
    os.environ.setdefault("NUMBA_CACHE_DIR", str(cache_dir() / "numba"))
