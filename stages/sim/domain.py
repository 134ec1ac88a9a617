"""LIBERO's own environment class for a task's BDDL file, built without observables, cameras or renderer.

robosuite and LIBERO are imported inside the functions: only after `prepare`, and while a cached model is being read.
"""

import contextlib
import hashlib
import importlib
import importlib.metadata
import io
import pickle
import platform
import sys
import types
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stages.errors import SimulatorError
from stages.sim import robot_visuals
from stages.sim.assets import Assets, folder_stamp
from stages.sim.glfree import mujoco
from stages.sim.model_cache import Key, read_entry, write_entry
from stages.types import ENV_STEPS_PER_SECOND, Task

_DECIDING_PACKAGES = ("mujoco", "robosuite", "hf-libero", "bddl", "numpy")


@dataclass(frozen=True)
class Scene:
    """What an environment is made of, and what the cache has of it: read by a thread, None where there is nothing."""

    bddl_file: Path
    cheap_robot: bool
    key: Key
    entry: "Future[tuple[mujoco.MjModel, bytes] | None]"


@contextlib.contextmanager
def reading_scene(task: Task, assets: Assets, *, cheap_robot: bool) -> Iterator[Scene]:
    """Reads a task's compiled scene from the cache in a thread, which has ended when the block ends.

    With LIBERO's meshes that takes as long as the imports, which the block is for.

    Args:
        task, assets: the scene.
        cheap_robot: replace the robot's visual meshes; physics does not change.
    """
    key = _key(task, assets, cheap_robot)
    with ThreadPoolExecutor(1) as pool:
        yield Scene(task.bddl_file, cheap_robot, key, pool.submit(read_entry, key))


def make_domain(scene: Scene) -> Any:
    """LIBERO's environment of a task: from the cache after its first use on this machine, else as `build_domain`.

    A cached environment is equal to a built one to the last bit once both are reset; before, the simulation's data is
    that of no particular moment. Numpy's global stream advances only where the environment is built.

    Raises:
        SimulatorError: a file of the assets is missing or broken.
    """
    domain_class = _domain_class(scene.bddl_file, cheap_robot=scene.cheap_robot)
    _load_numba()
    entry = scene.entry.result()
    if entry is not None:
        with contextlib.suppress(Exception):  # whatever an unpickler raises over code that is not the writer's
            return _thaw(domain_class, *entry)
    domain = build_domain(scene.bddl_file, cheap_robot=scene.cheap_robot)
    with contextlib.suppress(pickle.PicklingError):
        write_entry(scene.key, domain.sim.model._model, _freeze(domain))
    return domain


def build_domain(bddl_file: Path, *, cheap_robot: bool) -> Any:
    """Builds the scene: model, placement samplers, goal predicate and robot. Draws from numpy's global stream.

    Args:
        bddl_file: the task.
        cheap_robot: replace the robot's visual meshes; physics does not change.

    Returns:
        The environment, with two attributes more: `built_body_pos` and `built_body_quat`, the model's body poses before
        any reset moved a fixture.

    Raises:
        SimulatorError: a file of the assets is missing or broken.
    """
    from robosuite import load_controller_config
    from robosuite.utils.errors import RandomizationError

    domain_class = _domain_class(bddl_file, cheap_robot=cheap_robot)
    while True:
        try:
            return domain_class(
                str(bddl_file),
                robots=["Panda"],
                controller_configs=load_controller_config(default_controller="OSC_POSE"),
                initialization_noise=None,
                use_camera_obs=False,
                has_offscreen_renderer=False,
                control_freq=ENV_STEPS_PER_SECOND,
                ignore_done=True,
                hard_reset=False,
            )
        except RandomizationError:  # no place for the objects in this draw; LIBERO tries on as well
            continue
        except (OSError, ValueError, KeyError, AttributeError) as error:
            raise SimulatorError(
                f"the scene of {bddl_file.stem} cannot be built: {type(error).__name__} {' '.join(str(error).split())};"
                " use --set sim.assets=primitive for libero_object, sim.assets=libero for any suite"
            ) from error


def _domain_class(bddl_file: Path, *, cheap_robot: bool) -> Any:
    """LIBERO's class for the task, less its observables."""
    with _matplotlib_deferred():
        from libero.libero.envs import TASK_MAPPING
        from libero.libero.envs.bddl_utils import get_problem_info

    base = TASK_MAPPING[get_problem_info(str(bddl_file))["problem_name"]]

    def initialize_sim(self: Any, xml_string: str | None = None) -> None:
        xml = xml_string or self.model.get_xml()
        if cheap_robot:
            xml = robot_visuals.cheapen_robot(xml)
        base._initialize_sim(self, xml)
        self.built_body_pos, self.built_body_quat = self.sim.model.body_pos.copy(), self.sim.model.body_quat.copy()

    # LIBERO compares the class's name with the BDDL file's, and robosuite has no way in before the model is compiled.
    return type(base.__name__, (base,), {"_initialize_sim": initialize_sim, "_setup_observables": lambda self: {}})


@contextlib.contextmanager
def _matplotlib_deferred() -> Iterator[None]:
    """LIBERO imports a colour map for its segmentation images; here that waits until somebody asks for one."""
    if "matplotlib" in sys.modules:
        yield
        return
    package, colours = types.ModuleType("matplotlib"), types.ModuleType("matplotlib.cm")
    vars(colours)["__getattr__"] = lambda name: getattr(importlib.import_module("matplotlib.cm"), name)
    vars(package).update(cm=colours)
    stand_ins = {"matplotlib": package, "matplotlib.cm": colours}
    sys.modules.update(stand_ins)
    try:
        yield
    finally:
        for name in stand_ins:
            sys.modules.pop(name, None)


def _load_numba() -> None:
    """The first call of any compiled function loads numba's registries and scipy's BLAS, a quarter of a second."""
    from robosuite.utils.transform_utils import quat2mat

    quat2mat(np.array([0.0, 0.0, 0.0, 1.0]))


def _key(task: Task, assets: Assets, cheap_robot: bool) -> Key:
    """All that decides what `build_domain` makes. Paths are part of it because models and environments name files."""
    own_code = b"".join(Path(file).read_bytes() for file in (__file__, robot_visuals.__file__))
    return {
        "task": task.id,
        "bddl": str(task.bddl_file),
        "bddl_sha256": hashlib.sha256(task.bddl_file.read_bytes()).hexdigest(),
        "assets": f"{assets.kind} {assets.path}",
        "assets_digest": assets.digest,
        "assets_stamp": folder_stamp(assets.path),
        "robot": "cheap" if cheap_robot else "whole",
        "built_by": hashlib.sha256(own_code).hexdigest()[:16],
        "python": sys.implementation.cache_tag,
        "machine": platform.machine(),
        **{package: _version(package) for package in _DECIDING_PACKAGES},
    }


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:  # LIBERO can be installed under other names
        return "none"


def _freeze(domain: Any) -> bytes:
    """Pickles the environment's attributes, less the simulation, which the compiled model can make again.

    Raises:
        PicklingError: something in it cannot be pickled, or holds on to a part of the simulation.
    """
    from robosuite.utils import binding_utils

    stand_ins = {id(domain): "domain", id(domain.sim): "sim"}
    simulation = (mujoco.MjModel, mujoco.MjData, binding_utils.MjModel, binding_utils.MjData)

    class Freezer(pickle.Pickler):
        def persistent_id(self, obj: Any) -> str | None:
            if isinstance(obj, simulation):
                raise pickle.PicklingError(f"{type(obj).__name__} is part of the simulation")
            return stand_ins.get(id(obj))

    buffer = io.BytesIO()
    try:
        Freezer(buffer, protocol=pickle.HIGHEST_PROTOCOL).dump(vars(domain))
    except (TypeError, AttributeError, RecursionError) as error:  # a lock, a local class, a deep tree
        raise pickle.PicklingError(str(error)) from error
    return buffer.getvalue()


def _thaw(domain_class: Any, model: mujoco.MjModel, pickled: bytes) -> Any:
    """The environment whose attributes `_freeze` wrote, around a model of its own."""
    from robosuite.utils.binding_utils import MjSim

    domain = domain_class.__new__(domain_class)
    stand_ins = {"domain": domain, "sim": MjSim(model)}

    class Thawer(pickle.Unpickler):
        def persistent_load(self, pid: str) -> Any:
            return stand_ins[pid]

    vars(domain).update(Thawer(io.BytesIO(pickled)).load())
    return domain
