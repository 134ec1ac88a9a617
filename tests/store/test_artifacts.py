"""Whole or nothing: atomic folders, digests and deterministic JSON."""

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from stages.errors import ArtifactError, TgrpoError
from stages.store.artifacts import atomic_directory, digest_of, find_partials, write_json

ROOT = Path(__file__).parents[2]


def test_appears_whole_with_its_parents(tmp_path: Path) -> None:
    path = tmp_path / "data" / "groups" / "x"
    with atomic_directory(path) as partial:
        (partial / "file").write_text("content")
        assert partial.parent == path.parent and partial.name.startswith(".x.partial-")
        assert find_partials(path.parent) == [partial]
        assert not path.exists()
    assert (path / "file").read_text() == "content"
    assert find_partials(path.parent) == []


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_exception_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error), atomic_directory(tmp_path / "x") as partial:
        (partial / "file").write_text("content")
        raise error
    assert list(tmp_path.iterdir()) == []


def test_existing_is_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    worked = False
    with pytest.raises(ArtifactError, match="exists already"), atomic_directory(tmp_path / "x"):
        worked = True
    assert not worked


def test_a_second_writer_of_the_same_path_loses(tmp_path: Path) -> None:
    with (
        pytest.raises(ArtifactError, match="exists already"),
        atomic_directory(tmp_path / "x"),
        atomic_directory(tmp_path / "x") as winner,
    ):
        (winner / "file").touch()
    assert [path.name for path in tmp_path.rglob("*")] == ["x", "file"]


def test_overwrite_replaces_and_a_failed_overwrite_keeps(tmp_path: Path) -> None:
    for content in ("old", "new"):
        with atomic_directory(tmp_path / "x", overwrite=True) as partial:
            (partial / content).touch()
    assert [path.name for path in (tmp_path / "x").iterdir()] == ["new"]
    with pytest.raises(ValueError), atomic_directory(tmp_path / "x", overwrite=True):
        raise ValueError
    assert [path.name for path in tmp_path.rglob("*")] == ["x", "new"]


def test_a_killed_writer_leaves_nothing_at_the_path(tmp_path: Path) -> None:
    script = f"""
import sys, time
from pathlib import Path
from stages.store.artifacts import atomic_directory
with atomic_directory(Path({str(tmp_path / "x")!r})) as partial:
    (partial / "file").write_text("half")
    print("writing", flush=True)
    time.sleep(60)
"""
    writer = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, cwd=ROOT)
    assert writer.stdout is not None and writer.stdout.readline() == b"writing\n"
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    writer.stdout.close()
    assert not (tmp_path / "x").exists()
    assert len(find_partials(tmp_path)) == 1


def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(TgrpoError, match="the disk is full") as caught, atomic_directory(tmp_path / "x"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_write_that_the_system_cuts_off_is_one_line(tmp_path: Path) -> None:
    # A real failing write: the file size limit of the process stands in for the disk's end.
    script = f"""
import resource, signal, sys
from pathlib import Path
sys.path[:0] = [{str(ROOT)!r}, {str(Path(__file__).parent)!r}]
from stages.errors import TgrpoError
from group_sample import write_sample
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
try:
    write_sample(Path({str(tmp_path / "g.zarr")!r}))
except TgrpoError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert "the disk is full" in done.stdout and done.stdout.count("\n") == 1, done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(TgrpoError, match=r"cannot write into .*file \(Not a directory\); choose another folder"):  # noqa: SIM117
        with atomic_directory(tmp_path / "file" / "x"):
            pass


def test_another_os_error_is_not_called_a_full_disk(tmp_path: Path) -> None:
    with pytest.raises(BrokenPipeError), atomic_directory(tmp_path / "x"):
        raise BrokenPipeError(errno.EPIPE, "the simulator's pipe")


def test_digest_of_files_and_folders(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("abc")
    # SHA-256 of "abc", FIPS 180-2 appendix B.1
    assert digest_of(tmp_path / "file") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    with pytest.raises(ArtifactError, match="does not exist"):
        digest_of(tmp_path / "none")


def test_digest_sees_names_bytes_and_borders_but_not_times(tmp_path: Path) -> None:
    def folder(name: str, **files: str) -> Path:
        (tmp_path / name).mkdir()
        for file, content in files.items():
            (tmp_path / name / file).write_text(content)
        return tmp_path / name

    first = digest_of(folder("a", x="12", y="3"))
    again = folder("b", y="3", x="12")
    os.utime(again / "x", (time.time() - 999, time.time() - 999))
    (again / "empty").mkdir()
    assert digest_of(again) == first
    assert digest_of(folder("c", x="1", y="23")) != first
    assert digest_of(folder("d", x="12", z="3")) != first
    # One file holding "12", then the name and the bytes of the other, is not two files.
    assert digest_of(folder("f", x="12y\0003")) != first
    linked = folder("e", y="3")
    (linked / "x").symlink_to(again / "x")
    assert digest_of(linked) == first


def test_json_is_the_same_every_time(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"b": 1, "a": [0.1, "ü"]})
    assert (tmp_path / "a.json").read_text(encoding="utf-8") == '{\n  "a": [\n    0.1,\n    "ü"\n  ],\n  "b": 1\n}\n'
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "b.json", float("nan"))
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
