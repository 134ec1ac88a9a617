"""What memory is left is read as the kernel writes it, for the machine and for containers."""

import mmap
import os
from pathlib import Path

import pytest

from stages.sim.memory import available_bytes, private_bytes


def _write(path: Path, text: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{text}\n")


@pytest.fixture
def machine(tmp_path: Path) -> tuple[Path, Path]:
    """/proc and /sys/fs/cgroup of a machine with 8000 KiB left."""
    _write(tmp_path / "proc/meminfo", "MemTotal:  9000 kB\nMemAvailable:  8000 kB\nHugePages_Total:  0")
    return tmp_path / "proc", tmp_path / "cgroup"


def test_of_the_machine(machine: tuple[Path, Path]) -> None:
    assert available_bytes(*machine) == 8000 * 1024
    _write(machine[0] / "self/cgroup", "0::/job")  # a group that cannot be seen from here
    assert available_bytes(*machine) == 8000 * 1024


def test_of_the_tightest_control_group_version_2(machine: tuple[Path, Path]) -> None:
    proc, cgroups = machine
    _write(proc / "self/cgroup", "0::/user/job")
    for level, limit, used, cache in (("user", 5_000_000, 3_000_000, 500_000), ("user/job", "max", 1_000_000, 0)):
        _write(cgroups / level / "memory.max", limit)
        _write(cgroups / level / "memory.current", used)
        _write(cgroups / level / "memory.stat", f"anon 1\ninactive_file {cache}")
    assert available_bytes(*machine) == 2_500_000


def test_of_a_container_whose_root_is_its_group_version_1(machine: tuple[Path, Path]) -> None:
    proc, cgroups = machine
    _write(proc / "self/cgroup", "4:memory:/docker/0123\n3:cpuset:/\n1:cpu:/docker/0123")
    _write(cgroups / "memory/memory.limit_in_bytes", 4_000_000)
    _write(cgroups / "memory/memory.usage_in_bytes", 1_000_000)
    _write(cgroups / "memory/memory.stat", "inactive_file 7\ntotal_inactive_file 250000")
    assert available_bytes(*machine) == 3_250_000


def test_of_this_process() -> None:
    before = private_bytes(os.getpid())
    written = mmap.mmap(-1, 32 << 20, flags=mmap.MAP_PRIVATE)  # pages that nobody has had before
    written.write(b"1" * len(written))
    assert 32 << 20 <= private_bytes(os.getpid()) - before < 40 << 20
    assert 0 < available_bytes() < 1 << 50
    assert private_bytes(2**22 + 1) == 0  # larger than any process id
