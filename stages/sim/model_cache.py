"""Compiled scenes on disk: only the first use of a task on a machine parses, merges and compiles its MJCF files.

An entry is a folder, named by a digest of all that decides the scene, that appears whole:

    header.json     what decides the scene, and the SHA-256 of the other two
    model.mjb       MuJoCo's compiled model
    domain.pickle   the Python side of LIBERO's environment (`stages/sim/domain.py`)

An entry that is missing, damaged, of another scene or not the user's own is None to the reader, and the next writer
replaces it. The cache never fails: where it cannot be written, scenes are compiled each time.
"""

import contextlib
import hashlib
import json
import math
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Mapping
from io import FileIO
from pathlib import Path

import numpy as np

from stages.sim.cache import cache_dir
from stages.sim.glfree import mujoco

MAX_BYTES = 4 * 10**9  # two suites of ten tasks with LIBERO's meshes, 80 to 180 MB each; primitive scenes have 7 MB
_ABANDONED_AFTER_S = 3600.0  # a temporary folder this old belongs to a process that was killed
_HEADER, _MODEL, _PICKLE = "header.json", "model.mjb", "domain.pickle"

Key = Mapping[str, str]
"""All that decides a scene, by name, such as {"bddl": DIGEST, "mujoco": "3.3.2"}."""


def models_dir() -> Path:
    """The folder of all entries. May not exist."""
    return cache_dir() / "models"


def read_entry(key: Key) -> tuple[mujoco.MjModel, bytes] | None:
    """The model and the pickle stored under a key, digests checked, or None where there is no sound entry.

    Holds the GIL only briefly, so that a thread can read while another one imports.
    """
    entry = models_dir() / _name(key)
    try:
        if not all(_is_ours(path) for path in (entry, entry / _HEADER, entry / _MODEL, entry / _PICKLE)):
            return None
        header = json.loads((entry / _HEADER).read_bytes())
        pickled = (entry / _PICKLE).read_bytes()
        with (entry / _MODEL).open("rb", buffering=0) as file:
            if header != _header(key, {_MODEL: _file_sha256(file), _PICKLE: _sha256(pickled)}):
                return None
            file.seek(0)
            # By its descriptor: another process may have replaced the entry since, and MuJoCo complains on stderr.
            model = mujoco.MjModel.from_binary_path(f"/dev/fd/{file.fileno()}")
    except (OSError, ValueError):
        return None
    with contextlib.suppress(OSError):  # a cache that can only be read serves as well
        os.utime(entry / _HEADER)  # the time of the last use, by which old entries leave
    return model, pickled


def write_entry(key: Key, model: mujoco.MjModel, pickled: bytes) -> None:
    """Stores a model and a pickle under a key, whole or not at all, in place of what was there. Never raises OSError.

    Several processes may write the same entry at once; one of them wins. Entries unused for longest leave the cache
    when it exceeds `MAX_BYTES`.
    """
    compiled = np.empty(mujoco.mj_sizeModel(model), np.uint8)
    mujoco.mj_saveModel(model, None, compiled)
    header = _header(key, {_MODEL: _sha256(compiled.data), _PICKLE: _sha256(pickled)})
    with contextlib.suppress(OSError):
        models_dir().mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".new-", dir=models_dir(), ignore_cleanup_errors=True) as temporary:
            new, entry = Path(temporary) / "new", models_dir() / _name(key)
            new.mkdir(mode=0o700)  # what lies in it is unpickled, so nobody else may put anything there
            (new / _MODEL).write_bytes(compiled.data)
            (new / _PICKLE).write_bytes(pickled)
            (new / _HEADER).write_text(json.dumps(header, indent=2) + "\n")
            with contextlib.suppress(FileNotFoundError):
                entry.rename(Path(temporary) / "old")
            new.rename(entry)
        _prune(entry)


def _is_ours(path: Path) -> bool:
    """Whether a path is the user's own, no link, and, if a folder, closed to other users' changes."""
    status = path.lstat()
    open_to_others = stat.S_ISDIR(status.st_mode) and bool(status.st_mode & 0o022)
    return status.st_uid == os.geteuid() and not stat.S_ISLNK(status.st_mode) and not open_to_others


def _header(key: Key, digests: Mapping[str, str]) -> dict[str, object]:
    return {"scene": dict(key), "sha256": dict(digests)}


def _name(key: Key) -> str:
    return _sha256(json.dumps(key, sort_keys=True).encode())[:32]


def _sha256(content: bytes | memoryview) -> str:
    return hashlib.sha256(content).hexdigest()


def _file_sha256(file: FileIO) -> str:
    """Reads few large pieces, because between any two a thread waits for the GIL."""
    digest, piece = hashlib.sha256(), memoryview(bytearray(2**24))
    while count := file.readinto(piece):
        digest.update(piece[:count])
    return digest.hexdigest()


def _prune(newest: Path) -> None:
    """Removes the entries unused for longest, but never the newest, and what killed writers have left."""
    entries = []
    for folder in models_dir().iterdir():
        with contextlib.suppress(OSError):  # another process removes it at the same time
            if folder.name.startswith("."):
                if time.time() - folder.stat().st_mtime > _ABANDONED_AFTER_S:
                    shutil.rmtree(folder)
            else:
                header = folder / _HEADER
                used = math.inf if folder == newest else header.stat().st_mtime if header.is_file() else 0.0
                entries.append((used, folder, sum(file.stat().st_size for file in folder.iterdir())))
    total = 0
    for _, folder, size in sorted(entries, reverse=True):
        total += size
        if total > MAX_BYTES and folder != newest:
            shutil.rmtree(folder, ignore_errors=True)
