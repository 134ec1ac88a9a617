"""`tgrpo doctor`: what is installed, which renderer works, which assets there are, and what is refused and why."""

import importlib
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from stages.errors import TgrpoError
from stages.params import Params

OK, WARNING, FAILURE = 0, 1, 2


@dataclass(frozen=True)
class Check:
    """One line of the report. Severity 0 is fine, 1 is worth knowing, 2 keeps tgrpo from working."""

    name: str
    severity: int
    found: str

    def line(self) -> str:
        return f"{('ok', 'note', 'FAIL')[self.severity]:<5}{self.name:<19}{self.found}"


def examine(params: Params) -> Iterator[Check]:
    """Checks the installation for what the params ask for, one thing after the other."""
    version = sys.version_info
    yield Check(
        "python",
        OK if (3, 11) <= version[:2] <= (3, 12) else FAILURE,
        f"{platform.python_version()} (tested: 3.11 and 3.12)",
    )
    yield _guard("simulator", _simulator)
    yield Check("learning", OK, _versions("torch", "transformers", "peft", "zarr", "dvc"))
    yield _torchvision()
    renderer = params.sim.renderer
    working = []
    for name in ("osmesa", "egl"):
        check = _guard(f"renderer {name}", partial(_renders, name))
        working += [name] if check.severity == OK else []
        needed = renderer == name
        yield check if check.severity == OK or needed else Check(check.name, WARNING, check.found)
    if not working:
        yield Check("renderer", FAILURE, "none works; install the software one: apt-get install libosmesa6")
    yield _guard("assets", lambda: _assets(params))
    yield _guard("device", lambda: _device(params.policy.device))
    free = shutil.disk_usage(".").free / 2**30
    yield Check(
        "disk", OK if free > 2 else WARNING, f"{free:.0f} GiB free here; a run of 20 iterations takes about 0.3"
    )
    yield Check("processors", OK, f"{os.cpu_count()}")
    key = "set" if os.environ.get("ANTHROPIC_API_KEY") else "not set; the built-in reward needs none"
    yield Check("ANTHROPIC_API_KEY", OK, key)


def _guard(name: str, check: Callable[[], object]) -> Check:
    """A check that fails by raising; whatever the reason, the report goes on."""
    try:
        return Check(name, OK, str(check()))
    except TgrpoError as error:
        return Check(name, FAILURE, str(error))


def _versions(*packages: str) -> str:
    found = []
    for package in packages:
        try:
            found.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            found.append(f"{package} missing")
    return ", ".join(found)


def _torchvision() -> Check:
    """A torchvision built for another torch fails at import and takes transformers down with it."""
    if importlib.util.find_spec("torchvision") is None:
        return Check("torchvision", OK, "not installed, and not needed")
    try:
        importlib.import_module("torchvision")
        return Check("torchvision", OK, f"{importlib.metadata.version('torchvision')}, imports")
    except (ImportError, RuntimeError) as error:
        return Check(
            "torchvision", FAILURE, f"fails at import and breaks transformers ({error}); pip uninstall torchvision"
        )


def _simulator() -> str:
    from stages.sim.runtime import check_versions

    check_versions()
    return _versions("mujoco", "robosuite", "hf-libero")


def _renders(name: str) -> str:
    from stages.sim.runtime import probe_renderer

    probe_renderer(name)
    return "renders"


def _assets(params: Params) -> str:
    from stages.sim.assets import resolve_assets

    assets = resolve_assets(params.sim)
    return f"{params.sim.assets} -> {assets.kind} {assets.path} ({assets.digest[:12]})"


def _device(device: str) -> str:
    import torch

    if torch.cuda.is_available():
        names = ", ".join(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count()))
        return f"{device}; CUDA: {names}"
    return f"{device}; no CUDA, {torch.get_num_threads()} threads"
