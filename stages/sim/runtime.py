"""Brings the process into the state that mujoco, robosuite and LIBERO need, before any of them is imported.

Nothing heavy is imported at the top, so `tgrpo doctor` and the listing of tasks can use this module at no cost.
"""

import contextlib
import fcntl
import importlib.metadata
import importlib.util
import io
import os
import runpy
import sys
import tempfile
import types
from collections.abc import Iterator, Mapping
from pathlib import Path

from stages.errors import SimulatorError
from stages.params import SimParams
from stages.sim.backends import choose_backend, lend_robosuite
from stages.sim.cache import cache_dir
from stages.sim.egl import EGL_DEVICE_VARIABLE

WORKER_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "LP_NUM_THREADS": "0",
    "MUJOCO_GL": "disable",
}
"""One worker uses one core: more threads in BLAS or in Mesa's software renderer only fight over the same cores. And mujoco
loads no OpenGL when it is imported; the renderer does, where it is needed."""

MUJOCO_VERSIONS = "3.3.0 to 3.3.2"
REFUSED_MUJOCO = (
    "3.3.3 and later draw LIBERO's floors darker, and from 3.4.0 on some of its initial states do not settle"
)


def prepare(sim: SimParams, assets_path: Path | None = None, *, liberos_renderer: bool = False) -> None:
    """Makes robosuite and LIBERO importable here: versions, configuration and assets folder. May be repeated.

    Imports robosuite, without OpenGL. `Renderer` loads OpenGL when it makes its first context, so until then this
    process has opened no display and can be forked.

    Args:
        sim: its `egl_device`, if there is one, is from now on the process's device for EGL.
        assets_path: the folder from which LIBERO shall load its models, or None to leave LIBERO to find one.
        liberos_renderer: LIBERO's own `OffScreenRenderEnv` shall be able to render, with the backend of `sim.renderer`.

    Raises:
        SimulatorError: a missing package, a refused version, no renderer, or a cache folder that cannot be written.
    """
    check_versions()
    if sim.egl_device is not None:
        os.environ[EGL_DEVICE_VARIABLE] = str(sim.egl_device)
    os.environ.setdefault("LP_NUM_THREADS", WORKER_ENVIRONMENT["LP_NUM_THREADS"])
    try:
        _configure_caches()
    except OSError as error:
        raise SimulatorError(
            f"the cache folder {cache_dir()} cannot be written ({error.strerror});"
            " choose another: export TGRPO_CACHE=FOLDER"
        ) from None
    try:
        _import_robosuite()
        import libero.libero
    except ImportError as error:
        raise SimulatorError(f"LIBERO cannot be imported ({error}); run: pip install -e . -c constraints.txt") from None
    if liberos_renderer:
        lend_robosuite(choose_backend(sim.renderer))
    if assets_path is not None:
        libero.libero._assets_path_cache = str(assets_path)


def check_versions() -> None:
    """Refuses simulator packages that are missing or known to give other results.

    From mujoco 3.3.3 on LIBERO's floors render darker, because it heeds the mark `sRGB` in their textures (OpenVLA falls
    from 88% to 68% on LIBERO-Object, openvla#282), and from 3.4.0 on some stored initial states no longer settle
    (RLinf#1460).

    Raises:
        SimulatorError: names the package, what was found, what is expected and the command that mends it.
    """
    libero_root()
    mujoco = _version("mujoco", "pip install mujoco==3.3.2")
    if mujoco[:2] != (3, 3) or mujoco > (3, 3, 2):
        raise SimulatorError(
            f"mujoco {'.'.join(map(str, mujoco))} is installed, but LIBERO needs {MUJOCO_VERSIONS}: {REFUSED_MUJOCO}"
            " (OpenVLA loses 20 points of success by it); run: pip install mujoco==3.3.2"
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


def _import_robosuite() -> None:
    """Imports mujoco and robosuite without the OpenGL that both would load at import, by environment variables.

    robosuite also refuses to be imported where `MUJOCO_EGL_DEVICE_ID` is not among `CUDA_VISIBLE_DEVICES`, though EGL
    and CUDA count devices differently.
    """
    if "robosuite" in sys.modules:
        return
    # Without a module of this name robosuite logs warnings and opens /tmp/robosuite.log, which may be another user's.
    sys.modules["robosuite.macros_private"] = types.ModuleType("robosuite.macros_private")
    # robosuite overrules MUJOCO_GL by a macro, which can only be changed before anything else of it is imported.
    spec = importlib.util.find_spec("robosuite")
    if spec is None or spec.origin is None:
        raise ImportError("robosuite is not installed")
    macros = runpy.run_path(str(Path(spec.origin).with_name("macros.py")))
    sys.modules["robosuite.macros"] = types.ModuleType("robosuite.macros")
    vars(sys.modules["robosuite.macros"]).update(macros, MUJOCO_GPU_RENDERING=False)
    with _environment(MUJOCO_GL="disable", CUDA_VISIBLE_DEVICES=None, MUJOCO_EGL_DEVICE_ID=None), quiet():
        import robosuite

    robosuite.macros = sys.modules["robosuite.macros"]


@contextlib.contextmanager
def _environment(**wanted: str | None) -> Iterator[None]:
    """Sets environment variables, of which None removes one, and puts them back."""
    before = {name: os.environ.get(name) for name in wanted}
    _set_environment(wanted)
    try:
        yield
    finally:
        _set_environment(before)


def _set_environment(values: Mapping[str, str | None]) -> None:
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


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
