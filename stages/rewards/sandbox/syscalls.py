"""The system calls that computing needs, as a kernel filter. Built by the parent, which has libseccomp; used by the child."""

import errno
import tempfile
from functools import cache

_FREE = (
    *("munmap", "mremap", "brk", "madvise", "futex", "sched_yield"),  # memory; `mmap` and `mprotect` with a condition
    *(
        "rt_sigreturn",
        "rt_sigaction",
        "rt_sigprocmask",
        "sigaltstack",
        "alarm",
        "restart_syscall",
    ),  # the traceback of a time-out
    *("clock_gettime", "gettimeofday", "getpid", "gettid", "exit", "exit_group"),
)
_PROT_EXEC, _MAP_ANONYMOUS = 4, 0x20


@cache
def seccomp_filter() -> tuple[bytes, str]:
    """A BPF program that allows what is listed here and answers everything else with EPERM.

    Returns:
        the program, empty where libseccomp is missing or too old, and then why.
    """
    try:
        import pyseccomp as seccomp  # type: ignore[import-untyped, unused-ignore]
    except (ImportError, RuntimeError, OSError) as error:
        return b"", f"libseccomp cannot be used ({error}); install libseccomp2 and pyseccomp"
    try:
        rules = seccomp.SyscallFilter(seccomp.ERRNO(errno.EPERM))
        for name in _FREE:
            try:
                rules.add_rule(seccomp.ALLOW, name)
            except (OSError, ValueError):
                continue  # not a call of this architecture
        rules.add_rule(seccomp.ALLOW, "read", seccomp.Arg(0, seccomp.EQ, 0))
        rules.add_rule(seccomp.ALLOW, "write", seccomp.Arg(0, seccomp.EQ, 1))
        rules.add_rule(seccomp.ALLOW, "write", seccomp.Arg(0, seccomp.EQ, 2))
        not_executable = seccomp.Arg(2, seccomp.MASKED_EQ, _PROT_EXEC, 0)
        rules.add_rule(
            seccomp.ALLOW, "mmap", not_executable, seccomp.Arg(3, seccomp.MASKED_EQ, _MAP_ANONYMOUS, _MAP_ANONYMOUS)
        )
        rules.add_rule(seccomp.ALLOW, "mprotect", not_executable)
        with tempfile.TemporaryFile() as file:
            rules.export_bpf(file)
            file.seek(0)
            return file.read(), ""
    except (OSError, ValueError) as error:
        return b"", f"libseccomp cannot build the filter ({error})"
