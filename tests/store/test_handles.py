"""Handles: one line of JSON each way, every wrong line with its own remedy, and no waiting for the end of the pipe."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from group_sample import write_sample

from stages.errors import ArtifactError, MismatchError, UsageError
from stages.store.handles import Handle, handle_for, parse_handles
from stages.store.provenance import Manifest, write_manifest


@pytest.fixture(scope="module")
def group(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sample(tmp_path_factory.mktemp("handles") / "g.zarr", decisions=2)


def test_round_trip_keeps_further_fields(group: Path) -> None:
    handle = handle_for(group, {"successes": 1})
    line = handle.to_json()
    assert "\n" not in line
    assert list(json.loads(line)) == ["kind", "path", "digest", "task", "successes"]
    assert list(parse_handles([line, "\n"], "group", "advantage")) == [handle]


def test_handle_for_a_manifest_folder(tmp_path: Path) -> None:
    write_manifest(tmp_path, Manifest(kind="reward", params={}, seed=0, details={"task": "libero_object/1"}))
    handle = handle_for(tmp_path)
    assert (handle.kind, handle.task) == ("reward", "libero_object/1")


def test_handles_are_read_as_they_arrive(group: Path) -> None:
    def pipe() -> Iterator[str]:
        yield handle_for(group).to_json() + "\n"
        pytest.fail("asked for the second line before the first handle was given out")

    assert next(parse_handles(pipe(), "group", "advantage")).path == group


@pytest.mark.parametrize("lines", [[], ["\n", "  \n"]])
def test_empty_stdin(lines: list[str]) -> None:
    with pytest.raises(UsageError, match=r"tgrpo advantage: no handle on stdin, expected group; .*`tgrpo rollout`"):
        list(parse_handles(lines, "group", "advantage"))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("data/groups/0001.zarr", "line 1 of stdin is no handle: found 'data/groups/0001.zarr'"),
        ("[1, 2]", "expected JSON"),
        ("x" * 500, r"x{60}\.\.\.'"),
        ('{"kind": "group", "path": "x"}', "has no 'digest'"),
        ('{"kind": "group", "path": 3, "digest": "x"}', "not all strings"),
    ],
)
def test_lines_that_are_no_handles(line: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        list(parse_handles([line], "group", "advantage"))
    assert "\n" not in str(caught.value)


def test_a_handle_of_another_kind_says_which_command_makes_the_right_one(group: Path) -> None:
    with pytest.raises(UsageError, match=r"handle of a group .*expected advantages; .*`tgrpo advantage`"):
        list(parse_handles([handle_for(group).to_json()], "advantages", "update"))


def test_a_path_that_is_gone(tmp_path: Path) -> None:
    handle = Handle("group", tmp_path / "gone.zarr", "ab" * 32)
    with pytest.raises(ArtifactError, match=r"gone\.zarr, named by a group handle, does not exist"):
        list(parse_handles([handle.to_json()], "group", "advantage"))


def test_an_artifact_that_changed_since(tmp_path: Path) -> None:
    handle = handle_for(write_sample(tmp_path / "g.zarr", decisions=2))
    write_sample(tmp_path / "g.zarr", decisions=3, overwrite=True)
    with pytest.raises(MismatchError, match="has changed since its handle was printed"):
        list(parse_handles([handle.to_json()], "group", "advantage"))
