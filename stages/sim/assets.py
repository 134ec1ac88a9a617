"""Which set of meshes and textures a scene is built from, and where it lies."""

import hashlib
import importlib.util
import os
import xml.etree.ElementTree as ET
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from stages.errors import SimulatorError
from stages.params import SimParams
from stages.sim import primitive_shapes, primitives
from stages.sim.cache import cache_dir

HUB_DATASET = "lerobot/libero-assets"
PRIMITIVE_REMEDY = "or set sim.assets=primitive"


@dataclass(frozen=True)
class Assets:
    """One asset set. `digest` covers what determines look and physics; equal digests, equal scenes."""

    kind: Literal["libero", "primitive"]
    path: Path
    digest: str


def resolve_assets(sim: SimParams) -> Assets:
    """Finds the asset set that the params name, generating or downloading it where that is asked for.

    `libero` looks in `sim.assets_dir`, else in the installed package, else in the folder of LIBERO's hub download,
    and downloads it when it is nowhere. `primitive` is generated into the cache once. `auto` is `libero` where that
    can be had without a download, else `primitive`.

    Raises:
        SimulatorError: a folder lacks a file that the LIBERO-Object tasks read, or LIBERO's assets cannot be had.
    """
    if sim.assets == "primitive":
        return _primitive()
    if sim.assets_dir is not None:
        return _libero(Path(sim.assets_dir).expanduser())
    found = next((folder for folder in _local_folders() if folder.is_dir()), None)
    if found is not None:
        return _libero(found)
    return _primitive() if sim.assets == "auto" else _libero(_download())


def _primitive() -> Assets:
    digest = primitives.primitive_digest()
    path = cache_dir() / "assets" / f"primitive-{digest}"
    try:
        primitives.write_primitives(path)
    except OSError as error:
        raise SimulatorError(
            f"cannot write the primitive assets to {path}: {error.strerror}; set TGRPO_CACHE"
        ) from None
    _refuse_incomplete(path, "delete the folder to have it generated again")
    return Assets("primitive", path, digest)


def _libero(path: Path) -> Assets:
    remedy = f"name a complete folder in sim.assets_dir, delete this one to download it again, {PRIMITIVE_REMEDY}"
    _refuse_incomplete(path, remedy)
    return Assets("libero", path.resolve(), _listing_digest(path))


def _refuse_incomplete(path: Path, remedy: str) -> None:
    missing = next((file for file in _needed_files(path) if not file.is_file()), None)
    if missing is not None:
        raise SimulatorError(f"the assets in {path} lack {os.path.relpath(missing, path)}; {remedy}")


def _needed_files(folder: Path) -> list[Path]:
    """The MJCF files of the ten LIBERO-Object tasks and the meshes and textures that these name, in reading order."""
    needed = [folder / primitives.SCENE, folder / primitives.FLOOR_TEXTURE, folder / primitives.WALL_TEXTURE]
    for document in [needed[0], *(folder / primitives.object_path(name) for name in sorted(primitive_shapes.BOXES))]:
        needed.append(document)
        if not document.is_file():
            break
        try:
            elements = ET.parse(document).getroot().iter()
        except ET.ParseError as error:
            raise SimulatorError(
                f"{document} is not valid XML ({error}); name another folder in sim.assets_dir"
            ) from None
        needed += [document.parent / file for element in elements if (file := element.get("file"))]
    return needed


def folder_stamp(folder: Path) -> str:
    """Changes with every file that is added, removed or written below a folder, and from machine to machine."""
    return _digest(f"{name} {status.st_size} {status.st_mtime_ns}" for name, status in _listing(folder))


def _listing_digest(folder: Path) -> str:
    return _digest(f"{name} {status.st_size}" for name, status in _listing(folder))


def _digest(lines: Iterable[str]) -> str:
    return hashlib.sha256("".join(f"{line}\n" for line in lines).encode()).hexdigest()[:16]


def _listing(folder: Path) -> list[tuple[str, os.stat_result]]:
    """All files below a folder in a fixed order, less hidden ones: a hub download keeps notes in .cache."""
    found = []
    for root, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for file in files:
            if not file.startswith(".") and os.path.isfile(path := os.path.join(root, file)):
                found.append((Path(path).relative_to(folder), os.stat(path)))
    return [(name.as_posix(), status) for name, status in sorted(found)]


def _local_folders() -> list[Path]:
    """Where LIBERO itself would look before it downloads, in its order (`libero.libero.get_assets_path`)."""
    spec = importlib.util.find_spec("libero")  # finds the package without importing it
    roots = [Path(root) for root in spec.submodule_search_locations or []] if spec else []
    return [*(root / "libero" / "assets" for root in roots), _hub_folder()]


def _hub_folder() -> Path:
    return Path.home() / ".cache" / "libero" / "assets"


def _download() -> Path:
    """Downloads what LIBERO's own `download_utils` does; that passes an argument which newer hub clients refuse."""
    try:
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(repo_id=HUB_DATASET, repo_type="dataset", local_dir=_hub_folder()))
    except Exception as error:  # whatever the hub's client raises, the remedy is the same
        reason = " ".join(str(error).split()) or type(error).__name__
        raise SimulatorError(
            f"LIBERO's assets are nowhere on this machine and cannot be downloaded ({reason:.120}); put them into a "
            f"folder and name it in sim.assets_dir, {PRIMITIVE_REMEDY}"
        ) from None
