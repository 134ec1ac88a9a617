"""Shuts the process it runs in: after `lock` it can compute, read its requests and write its answers, and nothing else.

Runs in the child, before the program is loaded. Every wall is tried, and those that stand are reported, because containers
and kernels differ in what they let a process give up.
"""

import ctypes
import os
import resource
import sys

_PR_SET_DUMPABLE, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 4, 22, 38
_SECCOMP_MODE_FILTER = 2
_INSTRUCTION = 8  # bytes, struct sock_filter
_NOBODY = 65534


class _Program(ctypes.Structure):
    """struct sock_fprog"""

    _fields_ = [("length", ctypes.c_ushort), ("instructions", ctypes.c_void_p)]


def lock(memory: int, syscalls: bytes) -> list[str]:
    """Gives up what computing does not need.

    Args:
        memory: bytes of address space beyond what is mapped now.
        syscalls: a BPF program, or empty.

    Returns:
        the walls that stand, of: root, user, limits, privileges, dump, seccomp.
    """
    walls = []
    mapped = _mapped()
    libc = ctypes.CDLL(None, use_errno=True)
    if os.geteuid() == 0:
        try:
            os.chroot(".")  # the empty working folder
            walls.append("root")
        except OSError:
            pass
        try:
            os.setgroups([])
            os.setresgid(_NOBODY, _NOBODY, _NOBODY)
            os.setresuid(_NOBODY, _NOBODY, _NOBODY)
        except OSError:
            pass
    if os.geteuid() != 0:
        walls.append("user")
    os.environ.clear()
    if _limit(mapped + memory):
        walls.append("limits")
    if sys.platform == "linux":
        if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0:
            walls.append("privileges")
        if libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) == 0:
            walls.append("dump")
        if syscalls:
            instructions = ctypes.create_string_buffer(syscalls, len(syscalls))
            program = _Program(len(syscalls) // _INSTRUCTION, ctypes.addressof(instructions))
            if libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(program), 0, 0) == 0:
                walls.append("seccomp")
    return walls


def _limit(address_space: int) -> bool:
    """No files written, no descriptors opened (so no files read and no sockets either), no processes or threads started."""
    limits = [
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NPROC, 0),
        (resource.RLIMIT_NOFILE, 0),
        (resource.RLIMIT_AS, address_space),
    ]
    done = True
    for limit, value in limits:
        try:
            resource.setrlimit(limit, (value, value))
        except (OSError, ValueError):
            done = False
    return done


def _mapped() -> int:
    """Bytes of address space that this process has now."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[0]) * resource.getpagesize()
    except OSError:
        return 2 << 30  # without /proc: more than an interpreter with numpy maps
