"""`tgrpo inspect`: any artifact -> what it holds, as lines of text; for a group also a picture, and a film on request."""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from stages.describe import describe
from stages.errors import ArtifactError, TgrpoError, UsageError
from stages.lineage import TRAINED_ON
from stages.params import Params
from stages.store.advantages import Advantages, open_advantages
from stages.store.artifacts import find_partials
from stages.store.groups import Group, open_group
from stages.store.handles import Handle
from stages.store.provenance import read_manifest, read_provenance, resolve_reference
from stages.workspace import DATA


def inspect(path: Path, picture: Path | None, film: Path | None, read_params: Callable[[], Params]) -> Iterator[str]:
    """Yields the lines that describe the artifact at `path`.

    Args:
        picture: where a group's picture goes; None puts it beside the group.
        film: where a group's film goes; None makes none.
        read_params: gives the params for rendering, asked only for a film.

    Raises:
        ArtifactError: nothing there, or no whole artifact.
        UsageError: a film of something that is no group.
    """
    if path.is_dir() and not (path / "zarr.json").exists() and not (path / "tgrpo.json").exists():
        yield from _folder(path)
        return
    handle = describe(path)
    if film is not None and handle.kind != "group":
        raise UsageError(f"--film needs a group, but {path} is of kind {handle.kind!r}")
    yield f"{handle.kind}  {path}"
    yield f"digest  {handle.digest}"
    if handle.kind == "group":
        yield from _group(path, picture)
        if film is not None:
            from stages.film import film_group

            film_group(read_params(), open_group(path, incomplete=True), film)
            yield f"film  {film}"
    elif handle.kind == "advantages":
        yield from _advantages(open_advantages(path))
    else:
        yield from _manifest(path, handle)


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    """Right-aligned columns, as wide as their widest cell."""
    cells = [list(header), *([_cell(value) for value in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    return ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]


def _cell(value: object) -> str:
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, float | np.floating):
        return f"{value:.4g}"
    return "-" if value is None else str(value)


def _group(path: Path, picture: Path | None) -> Iterator[str]:
    group = open_group(path, incomplete=True)
    a = group.attrs
    if not group.complete:
        yield f"incomplete: the simulator failed after {group.decisions} decisions; for looking at, not for training"
    yield f"task    {a.task}: {a.instruction}, from {a.initial_state}"
    images = f"images {a.image_size}x{a.image_size}" if a.image_size else "no images"
    yield (
        f"sampled at temperature {a.temperature:g}, stop {a.stop}, {a.action_repeat} environment steps a decision, "
        f"{images}, seed {a.seed}, iteration {a.iteration if a.iteration else '-'}"
    )
    for name, recorded in a.inputs.items():
        yield f"{name:<11}{resolve_reference(recorded, path)} ({recorded['digest'][:12]})"
    weighed = _find_advantages(group)
    mask, reward = group["mask"][:], group["reward"][:]
    milestone = np.where(mask, group["milestone"][:], -1)
    rows = []
    for g in range(group.trajectories):
        steps = int(group["env_steps"][g].sum())
        taken = mask[g]
        rows.append(
            [
                g,
                bool((group["success"][g] & taken).any()),
                int(taken.sum()),
                steps,
                float(reward[g][taken].sum()),
                int(milestone[g].max()),
                float(group["log_prob"][g][taken].mean()),
                float(group["entropy"][g][taken].mean()),
                float(weighed.trajectory_advantage[g]) if weighed else None,
                float(weighed.advantage[g][taken].mean()) if weighed else None,
            ]
        )
    header = (
        "traj",
        "success",
        "decisions",
        "env steps",
        "return",
        "milestone",
        "log-prob",
        "entropy",
        "T",
        "mean adv",
    )
    yield ""
    yield from table(header, rows)
    yield ""
    if weighed:
        yield f"advantages  {weighed.path} ({weighed.attrs.formula})"
    from stages.pictures import plot_group

    picture = picture or path.with_suffix(".png")
    plot_group(picture, group, weighed)
    yield f"picture  {picture}"


def _find_advantages(group: Group) -> Advantages | None:
    """The newest advantages of this very group, beside it or under data/advantages."""
    digest = describe(group.path).digest
    beside = group.path.parent.parent.parent / "advantages" / group.path.parent.name
    for folder in (beside, group.path.parent.parent / "advantages", DATA / "advantages"):
        for candidate in sorted(folder.glob("*.zarr"), reverse=True):
            try:
                if read_provenance(candidate)["inputs"]["group"]["digest"] == digest:
                    return open_advantages(candidate)
            except (ArtifactError, KeyError):
                continue
    return None


def _advantages(advantages: Advantages) -> Iterator[str]:
    a = advantages.attrs
    used = "used" if a.used else f"left out: {a.left_out}"
    yield f"of {resolve_reference(a.inputs['group'], advantages.path)}, {a.formula}, {used}"
    yield ""
    mask = advantages.mask
    rows = [
        [
            g,
            float(advantages.returns[g]),
            float(advantages.trajectory_advantage[g]),
            float(np.abs(advantages.step_advantage[g]).mean()),
            float(advantages.advantage[g][mask[g]].mean()) if mask[g].any() else None,
            float(advantages.advantage[g].min()),
            float(advantages.advantage[g].max()),
        ]
        for g in range(len(advantages.returns))
    ]
    yield from table(("traj", "return", "T", "mean |S|", "mean adv", "min", "max"), rows)


def _manifest(path: Path, handle: Handle) -> Iterator[str]:
    manifest = read_manifest(path, handle.kind)
    for name, value in {**manifest.details, **handle.extra}.items():
        yield f"{name}  {_count_states(value) if name == TRAINED_ON else json.dumps(value)}"
    for name, recorded in manifest.inputs.items():
        if not name.startswith(("advantages_", "demonstration_")):
            yield f"{name}  {recorded['path']} ({recorded['digest'][:12]})"
    yield f"seed  {manifest.seed}"
    yield "versions  " + ", ".join(f"{name} {version}" for name, version in manifest.versions.items())
    history = path / "history.csv"
    if history.exists():
        lines = [line.split(",") for line in history.read_text().splitlines()]
        yield ""
        yield from table(lines[0], [[float(cell) if cell else None for cell in line] for line in lines[1:]])
    episodes = path / "episodes.json"
    if episodes.exists():
        rows = json.loads(episodes.read_text())
        yield ""
        yield from table(list(rows[0]), [list(row.values()) for row in rows])


def _count_states(states: Sequence[str]) -> str:
    """`84 sampled, 2 official start states`."""
    counts = Counter(state.split("/")[0] for state in states)
    return ", ".join(f"{number} {source}" for source, number in counts.most_common()) + " start states"


def _folder(path: Path) -> Iterator[str]:
    entries = sorted(entry for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not entries:
        raise ArtifactError(f"{path} holds no artifacts")
    for entry in entries:
        try:
            handle = describe(entry)
            yield f"{handle.kind:<11}{entry}  {json.dumps(dict(handle.extra))}"
        except TgrpoError as error:
            yield f"{'?':<11}{entry}  {error}"
    for partial in find_partials(path):
        yield f"{'unfinished':<11}{partial}  left by a run that was cut off; delete it when nothing runs"
