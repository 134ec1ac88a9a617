"""LIBERO's tasks and official initial states, read from the installed package without importing it (or torch)."""

import difflib
import functools
import io
import pickle
import re
import runpy
import zipfile
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.errors import SimulatorError, TaskError
from stages.sim.runtime import libero_root
from stages.types import Task

MAX_ENV_STEPS = {
    "libero_spatial": 220,
    "libero_object": 280,
    "libero_goal": 300,
    "libero_10": 520,
    "libero_90": 400,
}
"""The step limit of each suite in LIBERO's evaluation protocol, in environment steps of 1/20 s."""

SUITES = tuple(MAX_ENV_STEPS)


def list_tasks(suite: str) -> list[Task]:
    """All tasks of a suite, in LIBERO's order 0 of its benchmark.

    Raises:
        TaskError: there is no such suite.
        SimulatorError: LIBERO is not installed.
    """
    if suite not in MAX_ENV_STEPS:
        raise TaskError(f"there is no suite {suite!r}{_suggest(suite, SUITES)}; known are {', '.join(SUITES)}")
    root = libero_root()
    return [
        Task(
            suite=suite,
            index=index,
            name=name,
            language=_language(name),
            bddl_file=root / "bddl_files" / suite / f"{name}.bddl",
            init_states_file=root / "init_files" / suite / f"{name}.pruned_init",
            max_env_steps=MAX_ENV_STEPS[suite],
        )
        for index, name in enumerate(_task_map()[suite])
    ]


def load_task(task_id: str) -> Task:
    """One task by index, `libero_object/6`, or by name, `libero_object/pick_up_the_butter_and_place_it_in_the_basket`.

    Raises:
        TaskError: there is no such suite or task; the message names the closest match or what exists.
        SimulatorError: LIBERO is not installed.
    """
    suite, slash, which = task_id.partition("/")
    if not slash or not which:
        raise TaskError(f"{task_id!r} is no task; expected suite/index or suite/name, such as libero_object/6")
    tasks = list_tasks(suite)
    if which.isascii() and which.isdecimal():
        if int(which) < len(tasks):
            return tasks[int(which)]
        raise TaskError(f"there is no task {task_id}; {suite} has {len(tasks)} tasks, 0 to {len(tasks) - 1}")
    by_name = {task.name: task for task in tasks}
    if which in by_name:
        return by_name[which]
    raise TaskError(
        f"there is no task {which!r} in {suite}{_suggest(which, tuple(by_name))};"
        f" its tasks are {suite}/0 to {suite}/{len(tasks) - 1}"
    )


def official_states(task: Task) -> NDArray[np.float64]:
    """The flattened MuJoCo states (time, qpos, qvel) from which LIBERO evaluates a task, shape (50, S), float64.

    They are read by an unpickler that admits nothing but numpy arrays, so the file cannot run code.

    Raises:
        SimulatorError: the file is missing or holds something else.
    """
    path = task.init_states_file
    try:
        with zipfile.ZipFile(path) as archive:
            (member,) = (name for name in archive.namelist() if name.endswith("/data.pkl"))
            states = _ArrayUnpickler(io.BytesIO(archive.read(member)), encoding="latin1").load()
        if not isinstance(states, np.ndarray) or states.ndim != 2:
            raise ValueError(f"found {type(states).__name__}, expected an array of two axes")
    except (OSError, zipfile.BadZipFile, pickle.UnpicklingError, ValueError) as error:
        raise SimulatorError(
            f"the initial states of {task.id} cannot be read from {path} ({error});"
            " run: pip install --force-reinstall --no-deps hf-libero==0.1.4"
        ) from None
    return np.ascontiguousarray(states, dtype=np.float64)


def task_object_names(task: Task) -> tuple[str, ...]:
    """The movable objects of a task (`butter_1`, `basket_1`, ...), in its BDDL file's order; the O axis of `Scene`."""
    section = re.search(r"\(:objects(.*?)\)", task.bddl_file.read_text(), re.DOTALL)
    names = section.group(1).split(" - ")[:-1] if section else []
    # Each piece is the category of the names before it, then the next names.
    return tuple(name for index, piece in enumerate(names) for name in piece.split()[min(index, 1) :])


class _ArrayUnpickler(pickle.Unpickler):
    """Admits the four names out of which numpy arrays are pickled."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("numpy.core.multiarray", "_reconstruct"):  # numpy's name before 2.0
            return super().find_class("numpy._core.multiarray", name)
        if (module, name) in {("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode")}:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"{module}.{name} has no place in a file of arrays")


@functools.cache
def _task_map() -> dict[str, list[str]]:
    """Suite -> task names. The file is run alone, because the package around it imports torch."""
    path = libero_root() / "benchmark" / "libero_suite_task_map.py"
    return dict(runpy.run_path(str(path))["libero_task_map"])


def _language(name: str) -> str:
    """What LIBERO makes of a task's name: words, without the scene in front (`KITCHEN_SCENE10_close_the_...`)."""
    words = name.split("_")
    scene = next((i for i, word in enumerate(words) if word.startswith("SCENE")), -1) if name[0].isupper() else -1
    return " ".join(words[scene + 1 :])


def _suggest(word: str, known: tuple[str, ...]) -> str:
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.3)
    return f"; did you mean {close[0]!r}?" if close else ""
