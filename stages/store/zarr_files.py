"""Zarr v3 groups made from, and checked against, a table of `ArraySpec`s. All that is common to both zarr artifacts."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.errors import ArtifactError
from stages.store.provenance import package_versions, read_provenance, remedy, require_exists, require_kind
from stages.store.schema import FIXED_SIZES, ArraySpec

if TYPE_CHECKING:
    import zarr

Sizes = Mapping[str, int]


def create_arrays(folder: Path, specs: Iterable[ArraySpec], sizes: Sizes) -> dict[str, zarr.Array[Any]]:
    """Makes a zarr group in an existing empty folder, with an array of the given axis sizes for each spec."""
    import zarr
    from zarr.codecs import ZstdCodec

    group = zarr.create_group(folder, zarr_format=3)
    return {
        spec.name: group.create_array(
            spec.name,
            shape=spec.shape(sizes),
            chunks=spec.chunk_shape(sizes),
            dtype=spec.dtype,
            # Level 3 without a byte shuffle, which ruins images.
            compressors=ZstdCodec(level=3),
            # Chunks as files in one folder each, c.0.1.0, not c/0/1/0: a group has 30 folders to sync instead of 120.
            chunk_key_encoding={"name": "default", "separator": "."},
            dimension_names=spec.dims,
            attributes={"unit": spec.unit, "description": spec.description},
        )
        for spec in specs
    }


def complete(folder: Path, kind: str, version: int, attrs: Mapping[str, Any], *, whole: bool = True) -> None:
    """Writes the `tgrpo` attribute, which makes the group in the folder an artifact: a whole one, or one cut short."""
    import zarr

    files, size = _weigh(folder)
    header: dict[str, Any] = {
        "kind": kind,
        "schema_version": version,
        "files": files,
        "bytes": size,
        "versions": package_versions(),
    }
    zarr.open_group(folder, mode="r+").attrs["tgrpo"] = {**header, **attrs, "complete": whole}


def open_checked(
    path: Path, kind: str, version: int, specs: Iterable[ArraySpec], *, cut_short: bool = False
) -> tuple[zarr.Group, dict[str, Any], dict[str, int]]:
    """Opens a zarr artifact for reading and checks it whole: kind, version, every array's dtype and shape, all files.

    Args:
        cut_short: also open one that is marked incomplete.

    Returns:
        The zarr group, its `tgrpo` attribute, and the size of every axis.

    Raises:
        ArtifactError: with what was found, what was expected and what to run.
    """
    require_exists(path, kind)
    attrs = read_provenance(path)
    require_kind(path, attrs, kind, version)
    if attrs.get("complete") is False and not cut_short:
        raise ArtifactError(
            f"{path} is incomplete: the simulator failed before the {kind} was whole; `tgrpo inspect` and `tgrpo replay` "
            f"can read it; to go on, {remedy(kind)} and leave this one out"
        )
    if not isinstance(attrs.get("complete"), bool):
        raise ArtifactError(f"{path} is half-written: its `complete` attribute is not set; {remedy(kind)}")
    files, size = _weigh(path)
    if (files, size) != (attrs.get("files"), attrs.get("bytes")):
        raise ArtifactError(
            f"{path} is not whole: found {files} files of {size} bytes, expected {attrs.get('files')} of "
            f"{attrs.get('bytes')}; copy it again, or {remedy(kind)}"
        )

    import zarr

    group = zarr.open_group(path, mode="r")
    sizes = dict(FIXED_SIZES)
    for spec in specs:
        _check_array(path, kind, group.get(spec.name), spec, sizes)
    return group, attrs, sizes


def _check_array(path: Path, kind: str, found: Any, spec: ArraySpec, sizes: dict[str, int]) -> None:
    """Checks one array against its spec, and its axes against those of the arrays before it (kept in `sizes`)."""
    import zarr

    expected = f"{spec.dtype} ({', '.join(str(sizes.get(dim, dim)) for dim in spec.dims)})"
    if not isinstance(found, zarr.Array):
        raise ArtifactError(f"{path} lacks the array {spec.name!r}, expected {expected}; {remedy(kind)}")
    bound = dict(zip(spec.dims, found.shape, strict=False))
    if (
        str(found.dtype) != spec.dtype
        or len(found.shape) != len(spec.dims)
        or any(sizes.get(dim, size) != size for dim, size in bound.items())
    ):
        raise ArtifactError(
            f"{path}: array {spec.name!r} is {found.dtype} {found.shape}, expected {expected}; {remedy(kind)}"
        )
    sizes.update(bound)


def _weigh(folder: Path) -> tuple[int, int]:
    """Number and total bytes of a zarr group's files besides its root `zarr.json`; hidden files are not zarr's."""
    files, size = 0, 0
    for parent, _, names in os.walk(folder):
        for name in names:
            if not name.startswith(".") and (parent, name) != (str(folder), "zarr.json"):
                files += 1
                size += os.stat(os.path.join(parent, name)).st_size
    return files, size
