"""Manifests, references between artifacts, and versions."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from group_sample import write_sample

from stages.errors import ArtifactError
from stages.store.artifacts import digest_of
from stages.store.provenance import (
    Manifest,
    package_versions,
    read_manifest,
    read_provenance,
    reference,
    resolve_reference,
    write_manifest,
)

MANIFEST = Manifest(
    kind="checkpoint",
    params={"update": {"lr": 1e-4}},
    seed=3,
    inputs={"parent": {"path": "base", "digest": "ab" * 32}},
    details={"iteration": 2},
)


def test_manifest_round_trip(tmp_path: Path) -> None:
    write_manifest(tmp_path, MANIFEST)
    assert read_manifest(tmp_path, "checkpoint") == MANIFEST
    assert MANIFEST.versions["numpy"] == np.__version__


def test_versions_leave_out_what_is_not_installed() -> None:
    assert {"numpy", "zarr"} <= package_versions().keys()
    assert all(package_versions().values())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "reward"}, "is a reward, expected a checkpoint; make one with `tgrpo sft` or `tgrpo update`"),
        ({"schema_version": 9}, "schema version 9, this tgrpo reads version 1"),
        ({"schema_version": "x"}, "no whole artifact"),
    ],
)
def test_manifest_refusals(tmp_path: Path, change: dict[str, object], message: str) -> None:
    write_manifest(tmp_path, MANIFEST)
    data = json.loads((tmp_path / "tgrpo.json").read_text())
    (tmp_path / "tgrpo.json").write_text(json.dumps({**data, **change}))
    with pytest.raises(ArtifactError, match=message):
        read_manifest(tmp_path, "checkpoint")


def test_a_manifest_with_a_key_missing_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tgrpo.json").write_text('{"kind": "checkpoint", "schema_version": 1}')
    with pytest.raises(ArtifactError, match="'params'"):
        read_manifest(tmp_path, "checkpoint")


def test_missing_and_foreign_folders(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="does not exist: expected a checkpoint"):
        read_manifest(tmp_path / "none", "checkpoint")
    with pytest.raises(ArtifactError, match="no whole artifact"):
        read_manifest(tmp_path, "checkpoint")


def test_provenance_of_a_zarr_group_needs_no_zarr(tmp_path: Path) -> None:
    record = read_provenance(write_sample(tmp_path / "g.zarr", decisions=2))
    assert (record["kind"], record["task"]) == ("group", "libero_object/6")


def test_references_survive_a_move_of_the_data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = tmp_path / "data"
    (data / "checkpoints").mkdir(parents=True)
    (data / "checkpoints" / "base").write_text("weights")
    monkeypatch.chdir(tmp_path)
    recorded = reference(Path("data/checkpoints/base"), Path("data/groups/0001.zarr"))
    assert recorded == {"path": "../checkpoints/base", "digest": digest_of(data / "checkpoints" / "base")}
    shutil.move(data, tmp_path / "elsewhere")
    assert resolve_reference(recorded, Path("elsewhere/groups/0001.zarr")) == Path("elsewhere/checkpoints/base")
