"""Artifacts on disk: written beside their place, renamed when whole, never changed after, named by a digest.

Nothing in an artifact depends on when, where or by whom it was written, so the same inputs give the same bytes.
"""

import errno
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from stages.errors import ArtifactError, TgrpoError
from stages.store.digest_cache import remembered

_PARTIAL = ".partial-"
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def digest_of(path: Path) -> str:
    """SHA-256, as 64 hex digits, of a file's bytes, or of a folder's files (relative path, size and bytes, sorted).

    Every file counts, links are followed, empty folders and modification times do not matter: a copy or a DVC
    checkout has the digest of the original. That of a large folder is remembered (see `digest_cache`).

    Raises:
        ArtifactError: nothing lies at the path.
    """
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    if not path.is_dir():
        raise ArtifactError(f"{path} does not exist")
    names = sorted(p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file())
    files = [(name, path / name) for name in names]
    return remembered(files, lambda: _digest_of_files(files))


def _digest_of_files(files: Sequence[tuple[str, Path]]) -> str:
    digest = hashlib.sha256()
    for name, path in files:
        with path.open("rb") as file:
            digest.update(f"{name}\0{os.fstat(file.fileno()).st_size}\0".encode())
            hashlib.file_digest(file, lambda: digest)
    return digest.hexdigest()


@contextmanager
def atomic_directory(path: Path, overwrite: bool = False) -> Iterator[Path]:
    """Yields a hidden sibling folder to write into; it is synced to disk and renamed to `path` when the block ends.

    If the block raises, the folder is removed and `path` stays what it was; a killed process leaves only the hidden
    folder (see `find_partials`). With `overwrite`, what lies at `path` is exchanged for the new folder in one step.

    Raises:
        ArtifactError: `path` exists and `overwrite` is false; found out before the block runs.
        TgrpoError: the disk is full or refuses the write.
    """
    refuse_existing(path, overwrite)
    partial = path.parent / f".{path.name}{_PARTIAL}{secrets.token_hex(4)}"
    _make_folder(partial)
    try:
        yield partial
        _sync_tree(partial)
        refuse_existing(path, overwrite)
        _move_into_place(partial, path)
    except BaseException as error:
        full = _is_disk_full(error, path.parent)
        shutil.rmtree(partial, ignore_errors=True)
        if full:
            raise TgrpoError(f"{path}: the disk is full; nothing was kept; free some space and run it again") from error
        raise


def find_partials(folder: Path) -> list[Path]:
    """What killed writers left in a folder, hidden and named `.NAME.partial-...`: safe to delete when nothing runs."""
    return sorted(folder.glob(f".*{_PARTIAL}*")) if folder.is_dir() else []


def write_json(path: Path, data: object) -> None:
    """Writes JSON the same way every time (sorted keys, two spaces, newline at the end), by rename.

    NaN and infinity, which JSON does not know, are refused with ValueError.
    """
    write_text(path, json.dumps(data, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Writes a text file by rename, so that nobody reads half of it.

    Raises:
        TgrpoError: the disk is full.
    """
    partial = path.with_name(f".{path.name}{_PARTIAL}{secrets.token_hex(4)}")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        if error.errno in _DISK_FULL:
            raise TgrpoError(f"{path}: the disk is full; free some space and run it again") from error
        raise


def refuse_existing(path: Path, overwrite: bool) -> None:
    """Raises ArtifactError when something lies at `path`; long stages ask before they start, not when they end."""
    if path.exists() and not overwrite:
        raise ArtifactError(
            f"{path} exists already and artifacts are never changed; remove it, choose another --out, or add --force"
        )


def _make_folder(partial: Path) -> None:
    try:
        partial.mkdir(parents=True)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise TgrpoError(f"cannot write into {partial.parent} ({reason}); choose another folder") from error


def _is_disk_full(error: BaseException, folder: Path) -> bool:
    """Safetensors only quotes the system's words, and torch not even these: there the room that is left decides."""
    if isinstance(error, OSError) and error.errno in _DISK_FULL:
        return True
    if isinstance(error, TgrpoError) or not isinstance(error, Exception):
        return False
    return os.strerror(errno.ENOSPC) in str(error) or shutil.disk_usage(folder).free < 64 * 1024


def _sync_tree(folder: Path) -> None:
    """Without this a power cut after the rename could leave whole names with empty files."""
    # In threads, because file systems then commit many files at once.
    with ThreadPoolExecutor(max_workers=16) as pool:
        list(pool.map(_sync, [*folder.rglob("*"), folder]))


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _move_into_place(partial: Path, path: Path) -> None:
    if not path.exists():
        os.rename(partial, path)  # fails, as it should, if another writer was faster: that folder is not empty
    elif _exchange(partial, path):
        _remove(partial)
    else:
        aside = partial.with_name(f"{partial.name}-replaced")
        os.rename(path, aside)
        os.rename(partial, path)
        _remove(aside)
    _sync(path.parent)


def _exchange(a: Path, b: Path) -> bool:
    """Swaps two paths in one step (Linux's renameat2); false where the system or the file system cannot."""
    import ctypes

    at_fdcwd, rename_exchange = -100, 2
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    return bool(renameat2(at_fdcwd, os.fsencode(a), at_fdcwd, os.fsencode(b), rename_exchange) == 0)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
