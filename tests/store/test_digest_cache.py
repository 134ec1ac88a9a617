"""Remembered digests: the same files are hashed once, and any change is seen."""

import os
import time
from pathlib import Path

import pytest

from stages.store import digest_cache
from stages.store.digest_cache import remembered


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TGRPO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(digest_cache, "_SETTLED_NS", 0)
    path = tmp_path / "weights"
    path.write_bytes(b"1234")
    return path


def ask(path: Path, answer: str = "a" * 64, large: int = 4) -> str:
    time.sleep(0.02)  # clocks of file systems tick in milliseconds
    return remembered([("weights", path)], lambda: answer, large)


def test_the_same_files_are_hashed_once(file: Path) -> None:
    assert ask(file) == "a" * 64
    assert ask(file, "b" * 64) == "a" * 64


def test_any_change_is_seen(file: Path) -> None:
    ask(file)
    before = file.stat()
    file.write_bytes(b"4321")  # of the same size
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))  # and with the old time put back
    assert ask(file, "b" * 64) == "b" * 64
    other = file.with_name("other")
    other.write_bytes(b"5678")
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.replace(file)
    assert ask(file, "c" * 64) == "c" * 64


def test_what_is_small_or_young_is_not_remembered(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ask(file, large=5)
    assert ask(file, "b" * 64, large=5) == "b" * 64
    monkeypatch.setattr(digest_cache, "_SETTLED_NS", 10**12)
    ask(file)
    assert ask(file, "b" * 64) == "b" * 64
    assert not digest_cache.cache_dir().exists()


def test_a_cache_that_cannot_be_written_or_holds_rubbish_does_no_harm(file: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    assert ask(file) == "a" * 64
    (tmp_path / "cache").unlink()
    ask(file)
    (entry,) = digest_cache.cache_dir().iterdir()
    entry.write_text("cut")
    assert ask(file, "b" * 64) == "b" * 64
