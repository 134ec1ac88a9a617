"""Where an artifact comes from: its kind, schema version, params, seed, inputs and the package versions behind it.

A plain folder keeps this in `tgrpo.json`, a zarr group in its `tgrpo` attribute.
"""

import functools
import importlib.metadata
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from stages.errors import ArtifactError
from stages.store.artifacts import digest_of, write_json

Record = TypeVar("Record")

MANIFEST = "tgrpo.json"
MANIFEST_VERSION = 1
PACKAGES = ("mujoco", "robosuite", "hf-libero", "torch", "transformers", "peft", "numpy", "zarr", "tgrpo")

# What an error tells the user to run.
MADE_BY = {
    "group": ("rollout",),
    "advantages": ("advantage",),
    "checkpoint": ("sft", "update"),
    "reward": ("gen-reward",),
    "probes": ("verify-reward",),
    "report": ("verify-reward",),
    "demos": ("demos",),
    "eval": ("eval",),
    "episodes": ("eval",),
    "train": ("train",),
}


def remedy(kind: str) -> str:
    """The end of a message about a missing or broken artifact: the command that makes one of its kind."""
    commands = " or ".join(f"`tgrpo {command}`" for command in MADE_BY.get(kind, ()))
    return f"make one with {commands}" if commands else "make it again"


def reference(source: Path, artifact: Path, digest: str | None = None) -> dict[str, str]:
    """How the artifact at `artifact` names one of its inputs: `{"path", "digest"}`, the path relative to its folder.

    Relative to the artifact, not to the working directory: a moved data folder still holds together, and two runs in
    sibling folders write the same bytes. A model of the hub is named `{"hub", "digest"}` instead, because its place in
    the cache is this machine's own affair. `resolve_reference` is the way back.
    """
    if name := hub_name(source):
        return {"hub": name, "digest": digest or digest_of(source)}
    path = Path(os.path.relpath(source.absolute(), artifact.absolute().parent)).as_posix()
    return {"path": path, "digest": digest or digest_of(source)}


def resolve_reference(recorded: Mapping[str, str], artifact: Path) -> Path:
    """Where the input that `reference` recorded lies, as a path from the working directory; a model of the hub by name."""
    if "hub" in recorded:
        return Path(recorded["hub"])
    return Path(os.path.relpath(artifact.absolute().parent / recorded["path"]))


def hub_name(path: Path) -> str | None:
    """`owner/name@commit` of a folder in the Hugging Face cache, models--OWNER--NAME/snapshots/COMMIT; None for any other."""
    snapshot = path.absolute()
    kind, *name = snapshot.parent.parent.name.split("--")
    if snapshot.parent.name != "snapshots" or kind != "models" or len(name) != 2:
        return None
    return f"{name[0]}/{name[1]}@{snapshot.name}"


@functools.cache
def package_versions() -> dict[str, str]:
    """The installed versions of the packages that can change a result; packages that are not installed are left out."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


@dataclass(frozen=True)
class Manifest:
    """The provenance of an artifact that is a plain folder, kept in its `tgrpo.json`."""

    kind: str  # checkpoint, reward, demos, eval, ...
    params: Mapping[str, Any]  # the resolved params that it was made with
    seed: int
    inputs: Mapping[str, Mapping[str, str]] = field(default_factory=dict)  # name -> `reference`
    details: Mapping[str, Any] = field(default_factory=dict)  # facts of the kind: task, iteration, success rate, ...
    versions: Mapping[str, str] = field(default_factory=package_versions)
    schema_version: int = MANIFEST_VERSION


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Writes `tgrpo.json` into an artifact's folder."""
    write_json(folder / MANIFEST, asdict(manifest))


def read_manifest(path: Path, kind: str) -> Manifest:
    """Reads the `tgrpo.json` of the artifact folder at `path`.

    Raises:
        ArtifactError: no artifact there, of another kind or of another schema version.
    """
    require_exists(path, kind)
    data = read_provenance(path)
    require_kind(path, data, kind, MANIFEST_VERSION)
    return from_record(Manifest, data, path, kind)


def read_provenance(path: Path) -> dict[str, Any]:
    """The provenance of any artifact, which has at least `kind` and `schema_version`: of `tgrpo.json`, of a zarr
    group's `tgrpo` attribute (read as the JSON that it is, without zarr), or what stands in for it in a checkpoint that
    OpenVLA's own code wrote.

    Raises:
        ArtifactError: no such path, or nothing that `tgrpo` wrote.
    """
    if not path.exists():
        raise ArtifactError(f"{path} does not exist")
    try:
        if is_published(path):
            return asdict(published_manifest(path))
        if (path / MANIFEST).is_file():
            data = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        else:
            data = json.loads((path / "zarr.json").read_text(encoding="utf-8"))["attributes"]["tgrpo"]
        return {**data, "kind": str(data["kind"]), "schema_version": int(data["schema_version"])}
    except (OSError, ValueError, KeyError, TypeError):
        raise ArtifactError(
            f"{path} is no whole artifact: expected a readable {MANIFEST}, or a zarr.json with a `tgrpo` attribute; "
            "if a copy was cut off, copy it again, else make it again"
        ) from None


def is_published(path: Path) -> bool:
    """Whether a folder is a model that other code than tgrpo wrote, such as OpenVLA's."""
    return (path / "config.json").is_file() and not (path / MANIFEST).exists()


def published_manifest(path: Path) -> Manifest:
    """What a published checkpoint's tgrpo.json would say: made for LIBERO's frames of 256 pixels, a decision each step.

    Raises:
        ArtifactError: another kind of model, or one that was made for images of another kind.
    """
    try:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
        kind, resize = config.get("model_type"), config.get("image_resize_strategy")
    except (OSError, ValueError, AttributeError):
        raise ArtifactError(f"{path}/config.json cannot be read; copy the checkpoint again") from None
    if kind != "openvla":
        raise ArtifactError(
            f"{path}/config.json: model_type is {kind!r}; expected 'openvla'; name an OpenVLA checkpoint"
        )
    if resize != "resize-naive":
        raise ArtifactError(
            f"{path}/config.json: image_resize_strategy is {resize!r}; expected 'resize-naive' of a published checkpoint; "
            f"if `tgrpo sft` made it, copy its {MANIFEST} as well"
        )
    return Manifest(
        kind="checkpoint",
        params={},
        seed=0,
        details={
            "task": None,
            "instruction": None,
            "iteration": 0,
            "image_size": 256,
            "action_repeat": 1,
            "published": True,
        },
        versions={},
    )


def from_record(cls: type[Record], data: Mapping[str, Any], path: Path, kind: str) -> Record:
    """Builds one of the store's dataclasses from the JSON of the artifact at `path`; keys it does not know are ignored.

    Raises:
        ArtifactError: a field is missing.
    """
    names = [f.name for f in fields(cls)]  # type: ignore[arg-type]
    for name in names:
        if name not in data:
            raise ArtifactError(f"{path} lacks the attribute {name!r} that every {kind} has; {remedy(kind)}")
    return cls(**{name: data[name] for name in names})


def require_exists(path: Path, kind: str) -> None:
    """Raises ArtifactError, with the command that makes such an artifact, when nothing lies at the path."""
    if not path.exists():
        raise ArtifactError(f"{path} does not exist: expected {_a(kind)}; {remedy(kind)}")


def require_kind(path: Path, provenance: Mapping[str, Any], kind: str, version: int) -> None:
    """Raises ArtifactError when an artifact is not of the kind or schema version that the caller can read."""
    if provenance["kind"] != kind:
        raise ArtifactError(f"{path} is {_a(provenance['kind'])}, expected {_a(kind)}; {remedy(kind)}")
    if provenance["schema_version"] != version:
        raise ArtifactError(
            f"{path} has {kind} schema version {provenance['schema_version']}, this tgrpo reads version {version}; "
            f"{remedy(kind)}, or read it with the version of tgrpo that wrote it"
        )


def _a(kind: str) -> str:
    if kind in ("advantages", "demos", "episodes"):
        return kind
    return f"{'an' if kind[0] in 'aeiou' else 'a'} {kind}"
