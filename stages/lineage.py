"""On which start states a checkpoint was trained, so that it is not evaluated on them.

Every checkpoint records the initial states of all groups and demonstrations behind it, its parents' included, under
`trained_on` in its manifest. A checkpoint without the record (a published one, or one of an older tgrpo) says nothing about
its states, and is evaluated.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

from stages.errors import MismatchError
from stages.store.groups import Group
from stages.store.provenance import Manifest
from stages.types import InitialState

TRAINED_ON = "trained_on"


def trained_on(groups: Iterable[Group], parent: Manifest | None = None) -> list[str]:
    """The initial states, as `SOURCE/INDEX` and sorted, of the groups and of all that the parent was trained on."""
    before = parent.details.get(TRAINED_ON, []) if parent else []
    return sorted({*before, *(group.attrs.initial_state for group in groups)})


def refuse_trained_on(checkpoint: Path, manifest: Manifest, starts: Sequence[InitialState]) -> None:
    """Raises MismatchError when a checkpoint was trained on one of the states that it is to be evaluated on."""
    known = set(manifest.details.get(TRAINED_ON, []))
    seen = [str(start) for start in starts if str(start) in known]
    if not seen:
        return
    sources = {start.source for start in starts if str(start) in known}
    remedy = (
        "evaluate it with --starts validation, or train a checkpoint on sampled states only, as `tgrpo rollout` draws them"
        if "official" in sources
        else "evaluate it on the official states (--starts official), or with another --seed"
    )
    raise MismatchError(
        f"{checkpoint} was trained on {len(seen)} of the {len(starts)} start states of this evaluation, {seen[0]} first, "
        f"so its success there would say nothing about others; {remedy}"
    )
