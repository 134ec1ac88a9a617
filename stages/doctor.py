"""`tgrpo doctor`: what is installed, which renderer works, which assets there are, and what is refused and why.

And what training with the params would take (`stages.dry_run`).
"""

import importlib
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Literal

from stages.checks import FAILURE, OK, WARNING, Check
from stages.errors import TgrpoError
from stages.params import Params, SimParams


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
    yield from _renderers(params.sim)
    yield _guard("assets", lambda: _assets(params))
    yield _guard("device", lambda: _device(params.policy.device))
    yield from _kernels()
    free = shutil.disk_usage(".").free / 2**30
    yield Check(
        "disk", OK if free > 2 else WARNING, f"{free:.0f} GiB free here; a run of 20 iterations takes about 0.3"
    )
    yield Check("processors", OK, f"{os.cpu_count()}")
    yield from _policy(params)
    yield _guard("sandbox", _sandbox)
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
    from stages.sim.runtime import MUJOCO_VERSIONS, REFUSED_MUJOCO, check_versions

    check_versions()
    return f"{_versions('mujoco', 'robosuite', 'hf-libero')} (mujoco is held at {MUJOCO_VERSIONS}: {REFUSED_MUJOCO})"


def _renderers(sim: SimParams) -> Iterator[Check]:
    """Draws the golden frame with either backend. One that is not used may fail; that is worth knowing, no more."""
    from stages.sim.backends import choose_backend

    used = choose_backend(sim.renderer)
    for backend in ("osmesa", "egl"):
        check = _golden_frame(backend, sim.egl_device)
        if check.severity == FAILURE and backend != used:
            check = Check(check.name, WARNING, check.found)
        yield check
    yield Check("renderer", OK, f"sim.renderer={sim.renderer} -> {used}")


def _golden_frame(backend: Literal["osmesa", "egl"], egl_device: int | None) -> Check:
    from stages.sim.golden import LIMIT, check_golden_frame

    name = f"renderer {backend}"
    try:
        frame = check_golden_frame(backend, egl_device)
    except TgrpoError as error:
        return Check(name, FAILURE, str(error))
    draws = f"{frame.drawn_by.renderer}, {frame.drawn_by.version}"
    if frame.drawn_by.devices:
        draws += f"; devices {', '.join(map(str, frame.drawn_by.devices))}"
    by = f"by {frame.mean_difference:g} of 255 in the mean, {frame.largest_difference} at most"
    if not frame.same:
        return Check(
            name,
            FAILURE,
            f"{draws}; the golden frame differs {by} (limit {LIMIT:g}; its brightness is {frame.mean:g}, expected"
            f" {frame.picture_mean:g}): policies would see other images here; use the other renderer, or mujoco 3.3.2",
        )
    if frame.largest_difference == 0:
        return Check(name, OK, f"{draws}; the golden frame is equal in every byte")
    surprise = ", though the same software drew the reference" if frame.exact_expected else ""
    return Check(
        name, WARNING if surprise else OK, f"{draws}; the golden frame differs {by} (limit {LIMIT:g}){surprise}"
    )


def _sandbox() -> str:
    """Starts a child of the kind that reward programs run in."""
    from stages.rewards.sandbox import jail_strength

    strength = jail_strength()
    walls = f"reward programs run apart ({', '.join(strength.walls)})"
    return walls if strength.strong else f"{walls}; {strength.weakness}"


def _policy(params: Params) -> Iterator[Check]:
    from stages.dry_run import examine_policy

    yield from examine_policy(params)


def _assets(params: Params) -> str:
    from stages.sim.assets import resolve_assets

    assets = resolve_assets(params.sim)
    return f"{params.sim.assets} -> {assets.kind} {assets.path} ({assets.digest[:12]})"


def _kernels() -> Iterator[Check]:
    """Whether Triton compiles for the GPU; nothing where there is none."""
    import torch

    from stages.policy import fused

    if not torch.cuda.is_available():
        return
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        works = fused.available()
    found = "; ".join(str(warning.message) for warning in told) or "Triton cannot compile here, so decisions run slower"
    yield Check("kernels", OK, "Triton compiles") if works else Check("kernels", WARNING, found)


def _device(device: str) -> str:
    import torch

    if torch.cuda.is_available():
        names = ", ".join(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count()))
        return f"{device}; CUDA: {names}"
    return f"{device}; no CUDA, {torch.get_num_threads()} threads"
