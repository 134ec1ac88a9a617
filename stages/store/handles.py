"""Handles: one line of JSON per artifact, what flows through a pipe between two commands.

    {"kind": "group", "path": "data/groups/0007.zarr", "digest": "ab12...", "task": "libero_object/6", ...}

`path` is as the writer named it (from the working directory). Fields beyond the first four are a summary for people and
for `jq`, or what a later command of the pipe needs; a reader that does not know a field ignores it.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stages.errors import ArtifactError, MismatchError, UsageError
from stages.store.artifacts import digest_of
from stages.store.provenance import read_provenance, remedy


@dataclass(frozen=True)
class Handle:
    """Names one artifact on disk, and the bytes it had."""

    kind: str  # group, advantages, checkpoint, reward, demos, eval
    path: Path
    digest: str  # of `artifacts.digest_of`
    task: str | None = None  # task id, where the artifact is about one task
    extra: Mapping[str, Any] = field(default_factory=dict)  # further fields of the line, in order

    def to_json(self) -> str:
        """The handle as one line, without the newline."""
        line = {"kind": self.kind, "path": self.path.as_posix(), "digest": self.digest, "task": self.task, **self.extra}
        return json.dumps(line, ensure_ascii=False)

    def verify(self) -> None:
        """Checks that the artifact still has the bytes that the handle names.

        Raises:
            ArtifactError: the path does not exist (any more).
            MismatchError: the artifact has changed since.
        """
        if not self.path.exists():
            raise ArtifactError(f"{self.path}, named by a {self.kind} handle, does not exist; {remedy(self.kind)}")
        found = digest_of(self.path)
        if found != self.digest:
            raise MismatchError(
                f"{self.path} has changed since its handle was printed: found digest {found[:12]}, "
                f"expected {self.digest[:12]}; name the path instead of piping the old handle"
            )


def handle_for(path: Path, extra: Mapping[str, Any] | None = None) -> Handle:
    """The handle of an artifact of any kind on disk.

    Raises:
        ArtifactError: nothing there, or no whole artifact.
    """
    provenance = read_provenance(path)
    task = provenance.get("task") or provenance.get("details", {}).get("task")
    return Handle(provenance["kind"], path, digest_of(path), task, extra or {})


def parse_handles(lines: Iterable[str], expected_kind: str, command: str) -> Iterator[Handle]:
    """Reads handles as their lines arrive, checking each against the disk; `lines` may be stdin of a running pipe.

    Args:
        lines: JSON Lines; blank ones are skipped.
        expected_kind: the kind that the command works on.
        command: the reading command's name, for messages, such as `advantage`.

    Raises:
        UsageError: no handle at all, a line that is no handle, or one of another kind.
        ArtifactError, MismatchError: see `Handle.verify`.
    """
    maker = remedy(expected_kind)
    empty = True
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        empty = False
        handle = _parse(line, f"tgrpo {command}: line {number} of stdin")
        if handle.kind != expected_kind:
            raise UsageError(
                f"tgrpo {command}: got the handle of a {handle.kind} ({handle.path}), expected {expected_kind}; {maker}"
            )
        handle.verify()
        yield handle
    if empty:
        raise UsageError(
            f"tgrpo {command}: no handle on stdin, expected {expected_kind}; {maker} and pipe it in, or name a path"
        )


def _parse(line: str, where: str) -> Handle:
    shown = line.strip() if len(line) <= 60 else f"{line.strip()[:60]}..."
    try:
        fields = json.loads(line)
    except json.JSONDecodeError:
        fields = None
    if not isinstance(fields, dict):
        raise UsageError(f"{where} is no handle: found {shown!r}, expected JSON as the commands of tgrpo print it")
    extra = dict(fields)
    try:
        kind, path, digest = (extra.pop(name) for name in ("kind", "path", "digest"))
        task = extra.pop("task", None)
    except KeyError as missing:
        raise UsageError(f"{where} is no handle: {shown!r} has no {missing.args[0]!r}; pass on whole lines") from None
    if not all(isinstance(value, str) for value in (kind, path, digest)) or not isinstance(task, str | None):
        raise UsageError(f"{where} is no handle: kind, path, digest and task of {shown!r} are not all strings")
    return Handle(kind, Path(path), digest, task, extra)
