"""Digests of large folders, remembered between commands: hashing a 7B checkpoint again would cost each of them half a minute.

An entry is found by what the file system says of every file: device, inode, size, and the times of its last change and of
its last change of status, to the nanosecond. The kernel sets the last one, so that a file cannot change and keep it. The
cache never fails: where it cannot be written, folders are hashed each time.
"""

import contextlib
import hashlib
import os
import secrets
import time
from collections.abc import Callable, Sequence
from pathlib import Path

LARGE = 256 * 2**20  # bytes; less is hashed in a blink
_SETTLED_NS = 2 * 10**9  # clocks of file systems tick up to two seconds apart: what is younger may change unseen


def cache_dir() -> Path:
    """Where entries lie: `digests` in the project's cache folder (`$TGRPO_CACHE`, else `tgrpo` in the user's)."""
    if own := os.environ.get("TGRPO_CACHE"):
        return Path(own) / "digests"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tgrpo" / "digests"


def remembered(files: Sequence[tuple[str, Path]], compute: Callable[[], str], large: int = LARGE) -> str:
    """`compute()`, or what it gave for the same files before.

    Args:
        files: each file's name, as the digest counts it, and where it lies.
        large: bytes from which a digest is remembered.
    """
    stats = [(name, path.stat()) for name, path in files]
    if sum(stat.st_size for _, stat in stats) < large:
        return compute()
    key = hashlib.sha256()
    for name, stat in stats:
        key.update(
            f"{name}\0{stat.st_dev} {stat.st_ino} {stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns}\0".encode()
        )
    entry = cache_dir() / key.hexdigest()
    with contextlib.suppress(OSError):
        found = entry.read_text(encoding="ascii").strip()
        if len(found) == 64:
            return found
    youngest = max(max(stat.st_mtime_ns, stat.st_ctime_ns) for _, stat in stats)
    settled = time.time_ns() - youngest > _SETTLED_NS
    digest = compute()
    if settled:
        partial = entry.with_name(f".{entry.name}.{secrets.token_hex(4)}")
        with contextlib.suppress(OSError):
            entry.parent.mkdir(parents=True, exist_ok=True)
            partial.write_text(digest, encoding="ascii")
            partial.replace(entry)
    return digest
