"""How many environments the memory holds, by measuring the first."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

_FILES = {  # by version 2 and 1 of control groups: folder, limit, what counts towards it, and what of that can be freed
    "": ("", "memory.max", "memory.current", "inactive_file"),
    "memory": ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}


def private_bytes(pid: int) -> int:
    """What a process has written to and shares with no other, so what one more like it needs; 0 when it has ended."""
    try:
        return _bytes(Path(f"/proc/{pid}/smaps_rollup"))["Private_Dirty"]
    except (OSError, KeyError):
        return 0


def available_bytes(proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> int:
    """What this process can still have without swapping: of the machine, or of its container if that is less."""
    return min([_bytes(proc / "meminfo")["MemAvailable"], *_cgroup_rooms(proc / "self" / "cgroup", cgroups)])


def _cgroup_rooms(membership: Path, cgroups: Path) -> Iterator[int]:
    """What every control group with a limit leaves to this process, which is in all of them, from its own upwards."""
    for line in membership.read_text().splitlines() if membership.is_file() else []:
        _, controllers, path = line.split(":", 2)
        if controllers not in _FILES:
            continue
        mount, limit, usage, cache = _FILES[controllers]
        root = cgroups / mount
        group = root / path.lstrip("/")
        for level in (group, *group.parents):  # seen from inside a container, the root may be its group
            with contextlib.suppress(OSError, ValueError, KeyError):  # no such group here, or no limit: "max"
                most = int((level / limit).read_text())
                stat = dict(entry.split() for entry in (level / "memory.stat").read_text().splitlines())
                yield most - int((level / usage).read_text()) + int(stat[cache])
            if level == root:
                break


def _bytes(path: Path) -> dict[str, int]:
    """The fields of a file of /proc whose lines read `Name:  123 kB`, in bytes."""
    rows = (line.split() for line in path.read_text().splitlines())
    return {row[0].rstrip(":"): 1024 * int(row[1]) for row in rows if row[-1] == "kB"}
