"""The memory that a worker shares with the process that steps it: one record of a fixed layout, without a name.

Nothing is pickled and nothing lies under /dev/shm: the memory goes when the last of the two processes does.
"""

import contextlib
import mmap
import os
from collections.abc import Iterator
from dataclasses import dataclass, fields
from enum import Enum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.types import ACTION_DIM, PROPRIO_DIM, InitialState, Scene, VectorObservation

_SOURCES = ("official", "sampled")


class Command(Enum):
    """What a worker can be told, by one byte; what belongs to it lies in the record."""

    RESET = b"r"  # start an episode, settle, show it, and leave its snapshot in the record
    RESTORE = b"f"  # start the episode whose snapshot lies in the record
    STEP = b"s"  # hold the action for K environment steps and show what follows
    REPEAT = b"a"  # the same without showing it, to catch up with a lost worker


Payload = InitialState | NDArray[np.float64]  # of RESET; the snapshot (Z,) of RESTORE, the action (7,) of the others


@dataclass(frozen=True)
class Layout:
    """What the size of a record depends on: `image_size` H = W, K, the scene's O, J, R, Q; S; Z, entries of a snapshot."""

    image_size: int
    action_repeat: int
    objects: int
    joints: int
    places: int
    goals: int
    state_size: int
    snapshot_size: int

    @property
    def dtype(self) -> np.dtype[np.void]:
        """One record. What is shown has the names and axes of `VectorObservation` and `Scene`, less N."""
        return np.dtype(
            [
                ("alive_at", np.float64),  # when the worker last moved on, in seconds of the machine's monotonic clock
                ("source", np.int64),
                ("index", np.int64),
                ("action", np.float64, (ACTION_DIM,)),
                ("snapshot", np.float64, (self.snapshot_size,)),
                ("env_steps", np.int64),
                ("sim_state", np.float64, (self.action_repeat, self.state_size)),
                ("ee_pos", np.float64, (3,)),
                ("ee_quat", np.float64, (4,)),
                ("gripper_qpos", np.float64, (2,)),
                ("object_pos", np.float64, (self.objects, 3)),
                ("object_quat", np.float64, (self.objects, 4)),
                ("object_lin_vel", np.float64, (self.objects, 3)),
                ("object_ang_vel", np.float64, (self.objects, 3)),
                ("joint_pos", np.float64, (self.joints,)),
                ("place_pos", np.float64, (self.places, 3)),
                ("proprio", np.float32, (PROPRIO_DIM,)),
                ("grasped", np.bool_, (self.objects,)),
                ("touched", np.bool_, (self.objects,)),
                ("goal", np.bool_, (self.goals,)),
                ("success", np.bool_),
                ("image", np.uint8, (self.image_size, self.image_size, 3)),
            ],
            align=True,
        )

    def blank(self, num_envs: int) -> NDArray[np.void]:
        """The records (N,) of environments that were never reset: NaN where they have numbers."""
        records = np.zeros(num_envs, self.dtype)
        for name in records.dtype.names or ():
            if records[name].dtype.kind == "f":
                records[name].fill(np.nan)
        return records


class Record:
    """One record in memory that a file descriptor stands for; each process makes its own of the same descriptor.

    Args:
        layout: the same in both processes.
        descriptor: from `new_memory`; may be closed afterwards.
    """

    def __init__(self, layout: Layout, descriptor: int) -> None:
        dtype = layout.dtype
        os.ftruncate(descriptor, dtype.itemsize)
        self.values = np.ndarray((), dtype, mmap.mmap(descriptor, dtype.itemsize))

    def __getitem__(self, name: str) -> NDArray[Any]:
        """A view of one entry; a number's has the shape ()."""
        view: NDArray[Any] = self.values[name]
        return view

    def __setitem__(self, name: str, values: Any) -> None:
        self.values[name][...] = values

    def put(self, command: Command, payload: Payload) -> None:
        """Writes what belongs to a command."""
        if isinstance(payload, InitialState):
            self["source"], self["index"] = _SOURCES.index(payload.source), payload.index
        else:
            self["snapshot" if command == Command.RESTORE else "action"] = payload

    def start(self) -> InitialState:
        """The start that belongs to a RESET."""
        return InitialState("official" if self["source"] == 0 else "sampled", int(self["index"]))


@contextlib.contextmanager
def new_memory() -> Iterator[int]:
    """A descriptor of shared memory without a name, closed at the end; records made of it stay."""
    descriptor = os.memfd_create("tgrpo-env")
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def observation(records: NDArray[np.void]) -> VectorObservation:
    """Copies of what N records show."""

    def copies(kind: type[Scene] | type[VectorObservation]) -> dict[str, Any]:
        return {field.name: records[field.name].copy() for field in fields(kind) if field.name != "scene"}

    return VectorObservation(scene=Scene(**copies(Scene)), **copies(VectorObservation))
