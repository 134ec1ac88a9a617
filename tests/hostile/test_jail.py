# ruff: noqa: E501
"""Programs that the check of the syntax never saw, with all of Python in their hands: the process alone has to hold them."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest

from stages.rewards.sandbox import Limits, RewardError, RewardProcess, jail_strength
from stages.rewards.sandbox import process as process_module
from tests.hostile.sample import CONTEXT, QUICK, moments

PARENT = os.getpid()
C = "import ctypes; c = ctypes.CDLL(None, use_errno=True)\n"
ASK = "raise ValueError(f'{call} {ctypes.get_errno()}')"
FRAME = (
    "import os, struct\nframe = lambda kind, request, length: struct.pack('<4sBIQ', b'TGR1', kind, request, length)\n"
)
NO_ANSWER = "its process says what is no answer"
DENIED = "PermissionError: [Errno 1]"
REFUSED = "ValueError: -1 1"  # of a call of the C library: EPERM

# name, code, line of the program (the first of the code is 2), words
ATTACKS = [
    ("read a file", "open('/etc/passwd').read()", 2, DENIED),
    ("read a file by a descriptor", "import os\nos.open('/etc/passwd', 0)", 3, DENIED),
    ("read a file by numpy", "import numpy\nnumpy.fromfile('/etc/passwd')", 3, DENIED),
    ("write a file", "open('/tmp/reward-was-here', 'w')", 2, DENIED),
    ("write a file by numpy", "import numpy\nnumpy.save('/tmp/reward-was-here', [1])", 3, DENIED),
    ("delete a file", f"import os\nos.unlink({__file__!r})", 3, DENIED),
    ("make a folder", "import os\nos.mkdir('x')", 3, DENIED),
    ("list a folder", "import os\nos.listdir('.')", 3, DENIED),
    ("import what is not loaded", "import sqlite3", 2, "ModuleNotFoundError"),
    ("socket", C + "call = c.socket(2, 1, 0)\n" + ASK, 4, REFUSED),
    ("socket pair", C + "call = c.socketpair(1, 1, 0, (ctypes.c_int * 2)())\n" + ASK, 4, REFUSED),
    ("pipe", "import os\nos.pipe()", 3, DENIED),
    ("fork", "import os\nos.fork()", 3, DENIED),
    ("thread", "import _thread\n_thread.start_new_thread(print, ())", 3, "can't start new thread"),
    ("exec", "import os\nos.execv('/bin/sh', ['sh'])", 3, DENIED),
    ("shell", "import os\nraise ValueError(os.system('true') != 0)", 3, "ValueError: True"),
    ("environment", "import os\nraise ValueError(str(dict(os.environ)))", 3, "ValueError: {}"),
    ("environment of C", C + "call = c.getenv(b'PATH')\n" + ASK, 4, "ValueError: 0 0"),
    ("kill the parent", "import os\nos.kill(os.getppid(), 9)", 3, DENIED),
    ("kill everyone", "import os\nos.kill(-1, 9)", 3, DENIED),
    ("trace the parent", C + f"call = c.ptrace(16, {PARENT}, 0, 0)\n" + ASK, 4, REFUSED),
    ("read the parent's memory", C + f"call = c.process_vm_readv({PARENT}, 0, 0, 0, 0, 0)\n" + ASK, 4, REFUSED),
    ("executable memory", C + "c.mmap.restype = ctypes.c_long\ncall = c.mmap(0, 4096, 7, 0x22, -1, 0)\n" + ASK, 5, REFUSED),
    ("mount", C + "call = c.mount(b'x', b'/', b'tmpfs', 0, 0)\n" + ASK, 4, REFUSED),
    ("namespaces", C + "call = c.unshare(0x10000000)\n" + ASK, 4, REFUSED),
    ("become root", C + "call = c.setuid(0)\n" + ASK, 4, REFUSED),
    ("leave the folder", C + "call = c.chroot(b'/')\n" + ASK, 4, REFUSED),
    ("shared memory", C + "call = c.shmget(0, 4096, 0o1600)\n" + ASK, 4, REFUSED),
    ("other rules", "import resource\nresource.setrlimit(resource.RLIMIT_NOFILE, (9, 9))", 3, "ValueError"),
    ("random numbers of the system", "import os\nos.urandom(8)", 3, DENIED),
    ("sleep", "import time\ntime.sleep(600)", 3, DENIED),
    ("huge output", "import os\nwhile True: os.write(1, b'x' * 65536)", None, NO_ANSWER),
    ("huge error output", "import os\nwhile True: os.write(2, b'x' * 65536)", None, NO_ANSWER),
    ("close the pipe", "import os\nos.close(1)", 3, DENIED),
    ("garbage in the pipe", "import os\nos.write(1, b'garbage' * 9)", None, NO_ANSWER),
    ("forged NaN", FRAME + "os.write(1, frame(5, 2, 38) + struct.pack('<4d', 0, float('nan'), 1, 1) + bytes(6))", None, NO_ANSWER),
    ("forged milestone", FRAME + "os.write(1, frame(5, 2, 38) + bytes(32) + struct.pack('<3h', 1, 999, 1))", None, NO_ANSWER),
    ("forged length", FRAME + "os.write(1, frame(5, 2, 1 << 60))", None, NO_ANSWER),
    ("forged kind", FRAME + "os.write(1, frame(4, 2, 0))", None, NO_ANSWER),
    ("forged request", FRAME + "os.write(1, frame(5, 9, 38) + bytes(38))", None, NO_ANSWER),
    ("forged error of endless depth", FRAME + "os.write(1, frame(6, 2, 9000) + b'[' * 9000)", None, NO_ANSWER),
    ("forged error of wrong types", FRAME + "os.write(1, frame(6, 2, 2) + b'[]')", None, NO_ANSWER),
    ("pickle in the pipe", "import os, pickle\nos.write(1, pickle.dumps(print))", None, NO_ANSWER),
    ("leave", "import os\nos._exit(0)", None, "its process left without an answer"),
    ("leave by an exception", "raise SystemExit(0)", None, "its process left without an answer"),
    ("crash", "import ctypes\nctypes.string_at(0)", None, "its process died of SIGSEGV"),
    ("abort", "import os\nos.abort()", 3, "its process died of SIG"),
    ("endless loop", "while True: pass", 2, "needs more than 0.2 s of CPU time"),
    ("endless loop that catches all", "while True:\n  try:\n    while True: pass\n  except BaseException: pass", 4, "of CPU time"),
    ("deaf endless loop", "import signal\nsignal.signal(10, signal.SIG_IGN)\nwhile True: pass", None, "of CPU time"),
    ("memory", "x = bytearray(1 << 33)", 2, "needs more than 512 MiB of memory at moment 0"),
    ("memory bit by bit", "x = []\nfor i in range(600): x.append(bytes(1 << 20))", 3, "needs more than 512 MiB of memory"),
    ("recursion", "f = lambda: f()\nf()", 2, "RecursionError"),
    ("error that talks much", "class E(Exception):\n  def __str__(self): return 'x\\n' * 10**6\nraise E", 4, "E: x x x"),
    ("error that does not talk", "class E(Exception):\n  def __str__(self): raise self\nraise E", 4, "fails at moment 0: E"),
]  # fmt: skip


def program(code: str) -> str:
    return "def compute_reward(state, info):\n" + textwrap.indent(code, "    ") + "\n    return 0.0\n"


@pytest.mark.parametrize(("code", "line", "words"), [row[1:] for row in ATTACKS], ids=[row[0] for row in ATTACKS])
def test_stopped(code: str, line: int | None, words: str) -> None:
    with RewardProcess._unchecked(program(code), "raw.py", CONTEXT, QUICK) as process:
        assert process._connection
        pid = process._connection.pid
        with pytest.raises(RewardError) as caught:
            process.score(moments(3))
            process.score(moments(3))  # what was said unasked is found now at the latest
    message = str(caught.value)
    assert words in message
    assert caught.value.line == line or line is None, message
    assert "\n" not in message and len(message) < 600
    with pytest.raises(ChildProcessError):  # it was waited for: no zombie is left
        os.waitpid(pid, 0)


def test_nothing_was_written() -> None:
    assert not Path("/tmp/reward-was-here").exists() and Path(__file__).exists()


def test_all_walls_stand_here() -> None:
    strength = jail_strength()
    if not strength.strong:
        pytest.skip(strength.weakness)
    assert {"user", "limits", "privileges", "dump", "seccomp"} <= set(strength.walls)


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("open('/etc/passwd')", "Error: [Errno"),
        ("open('x', 'w')", "Error: [Errno"),
        (C + "raise ValueError(c.socket(2, 1, 0))", "ValueError: -1"),
        ("import os\nos.fork()", "BlockingIOError"),
        ("import os\nos.execv('/bin/sh', ['sh', '-c', 'echo'])", "Error: [Errno|left without"),
        ("x = bytearray(1 << 33)", "512 MiB"),
        ("import time\ntime.sleep(60)", "of time for 3 moments"),
    ],
)
def test_what_holds_without_the_filter_of_system_calls(code: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_module, "seccomp_filter", lambda: (b"", "libseccomp is missing"))
    limits = Limits(cpu_seconds=0.5, wall_factor=2.0)
    with (
        RewardProcess._unchecked(program(code), "raw.py", CONTEXT, limits) as process,
        pytest.raises(RewardError) as caught,
    ):
        process.score(moments(3))
    assert any(word in str(caught.value) for word in words.split("|")), caught.value


def test_a_missing_filter_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_module, "seccomp_filter", lambda: (b"", "libseccomp is missing"))
    strength = jail_strength()
    assert not strength.strong and "seccomp" not in strength.walls
    assert strength.weakness == "libseccomp is missing"


def test_the_child_has_no_descriptor_but_its_pipes(tmp_path: Path) -> None:
    secret = os.open(tmp_path, os.O_RDONLY)
    os.set_inheritable(secret, True)
    code = "import os\nopen_ones = []\nfor d in range(200):\n  try: os.fstat(d); open_ones.append(d)\n  except OSError: pass\nraise ValueError(str(open_ones))"
    # The filter answers EPERM whether one is open or not, so this asks without it.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(process_module, "seccomp_filter", lambda: (b"", ""))
        with (
            RewardProcess._unchecked(program(code), "raw.py", CONTEXT) as process,
            pytest.raises(RewardError) as caught,
        ):
            process.score(moments(1))
    os.close(secret)
    assert "ValueError: [0, 1, 2];" in str(caught.value)


def test_it_dies_with_its_parent() -> None:
    """Idle it notices the closed pipe. In the middle of a program its own alarm is left."""
    script = textwrap.dedent(
        """
        from stages.rewards.sandbox import RewardProcess
        from tests.hostile.sample import CONTEXT, GOOD
        process = RewardProcess(GOOD, "good.py", CONTEXT)
        print(process._connection.pid, flush=True)
        input()
        """
    )
    parent = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert parent.stdout
    child = int(parent.stdout.readline())
    os.kill(child, 0)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    end = time.monotonic() + 30
    while time.monotonic() < end and _alive(child):
        time.sleep(0.05)
    assert not _alive(child)


def test_a_process_that_was_dropped_is_ended() -> None:
    process = RewardProcess("def compute_reward(state, info):\n    return 1.0", "r.py", CONTEXT)
    assert process._connection
    pid = process._connection.pid
    del process
    with pytest.raises(ChildProcessError):
        os.waitpid(pid, 0)


def test_patching_numpy_reaches_the_program_alone(honest: RewardProcess, expected: np.ndarray) -> None:
    code = "import numpy\nnumpy.linalg.norm = numpy.asarray = numpy.isfinite = lambda *a, **k: 99.0"
    with RewardProcess._unchecked(program(code), "raw.py", CONTEXT) as process:
        assert (process.score(moments(3)).reward == 0).all()
    assert np.linalg.norm([3.0, 4.0]) == 5.0
    assert np.array_equal(honest.score(moments(40)).reward, expected)


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
