"""Which evaluations `tgrpo compare` is asked about: folders, runs of `tgrpo train`, or checkpoints that were evaluated."""

from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path

from stages.compare import do_pair
from stages.errors import ArtifactError, MismatchError, UsageError
from stages.store.artifacts import digest_of
from stages.store.episodes import EPISODES, open_episodes
from stages.store.provenance import MANIFEST, is_published, read_provenance
from stages.workspace import DATA, locate

Pair = tuple[Path, Path]


def resolve(named: Sequence[Path]) -> dict[float, list[Pair]]:
    """The pairs of evaluations, by temperature, that a command line names.

    A run stands for its evaluations before and after. All else is taken in twos, the baseline first: each an evaluation, or a
    checkpoint, for which its newest evaluation that pairs with the other side is found, at every temperature that has one.

    Raises:
        UsageError: nothing, one without a partner, or an artifact of another kind.
        ArtifactError: nothing at a path, or a checkpoint without evaluation.
        MismatchError: two that have no evaluations of the same episodes.
    """
    pairs: list[Pair] = []
    left: Path | None = None
    for path in named:
        kind = _kind(path)
        if kind == "train":
            pairs += _of_run(path)
        elif kind not in ("eval", "checkpoint"):
            raise UsageError(
                f"tgrpo compare needs evaluations, checkpoints or runs of `tgrpo train`, but {path} is of kind {kind!r}"
            )
        elif left is None:
            left = path
        else:
            pairs += _between(left, path)
            left = None
    if left is not None:
        raise UsageError(f"{left} has nothing to be compared with; name evaluations in twos, the baseline first")
    if not pairs:
        raise UsageError("tgrpo compare needs two evaluations, two checkpoints, or a run of `tgrpo train`")
    by_temperature: dict[float, list[Pair]] = {}
    for pair in pairs:
        by_temperature.setdefault(open_episodes(pair[0]).attrs.temperature, []).append(pair)
    return by_temperature


def _kind(path: Path) -> str:
    found = locate(path)
    if found.is_dir() and not is_published(found) and not (found / MANIFEST).exists():
        unfinished = (found / "run.json").exists()
        raise ArtifactError(
            f"{path} is a run that has not ended; go on with it by `tgrpo train --resume --out {path}`"
            if unfinished
            else f"{path} holds neither an evaluation, nor a checkpoint, nor a run; name what `tgrpo eval` wrote"
        )
    return str(read_provenance(found)["kind"])


def _of_run(run: Path) -> list[Pair]:
    pairs = [
        (before, before.with_name(before.name.replace("before", "after", 1)))
        for before in sorted((run / "evals").glob("before*"))
    ]
    if not pairs:
        raise ArtifactError(f"{run} has no evaluations in {run / 'evals'}; copy the run again, or name two evaluations")
    return pairs


def _between(a: Path, b: Path) -> list[Pair]:
    """The newest evaluations of the same episodes, one pair for each temperature."""
    of_a, of_b = _evaluations(a), _evaluations(b)
    if len(of_a) == len(of_b) == 1:
        return [(of_a[0], of_b[0])]  # if they do not pair, `compare` says why
    found: dict[float, Pair] = {}
    for left, right in product(of_a, of_b):
        temperature = open_episodes(left).attrs.temperature
        if temperature not in found and do_pair(left, right):
            found[temperature] = left, right
    if not found:
        raise MismatchError(
            f"none of the {len(of_a)} evaluations of {a} and the {len(of_b)} of {b} are of the same episodes; "
            "run `tgrpo eval` on both with the same --episodes, --temperature and --seed"
        )
    return list(found.values())


def _evaluations(path: Path) -> list[Path]:
    """An evaluation itself; of a checkpoint, all evaluations that are known, the newest first."""
    if _kind(path) == "eval":
        return [path]
    checkpoint = locate(path)
    digest = digest_of(checkpoint)
    found = []
    for evaluation in {*_known(checkpoint)}:
        try:
            record = read_provenance(evaluation)
        except ArtifactError:
            continue
        whole = (evaluation / EPISODES).exists() and not record.get("details", {}).get("incomplete")
        if whole and record.get("inputs", {}).get("checkpoint", {}).get("digest") == digest:
            found.append(evaluation)
    if not found:
        raise ArtifactError(
            f"{path} has no evaluation under {DATA / 'evals'} or in a run; make one with `tgrpo eval {path}`, or name its folder"
        )
    return sorted(found, key=lambda evaluation: ((evaluation / MANIFEST).stat().st_mtime_ns, evaluation), reverse=True)


def _known(checkpoint: Path) -> Iterator[Path]:
    """Where evaluations of a checkpoint may lie: data/evals, runs under data, and the run that the checkpoint is part of."""
    for manifest in (
        *DATA.glob(f"evals/*/{MANIFEST}"),
        *DATA.glob(f"*/evals/*/{MANIFEST}"),
        *DATA.glob(f"*/*/evals/*/{MANIFEST}"),
        *checkpoint.parent.parent.glob(f"evals/*/{MANIFEST}"),
    ):
        yield manifest.parent
