"""The checkpoint that a task's cells start from: the one that params name, or one that is made once and shared."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from stages.errors import ArtifactError
from stages.params import Params
from stages.reporting import Reporter
from stages.store.artifacts import digest_of


@dataclass(frozen=True)
class Base:
    """Where a task's base checkpoint lies, or will lie."""

    path: Path  # a folder, or a model of the hub
    made: bool  # by `demos` and `sft`, because params name no folder that exists
    identity: str  # of a folder its digest, of a model of the hub its name, of one to make what it is made from
    params: Params  # to make it with: one seed for all cells of the task

    @classmethod
    def of(cls, params: Params, root: Path) -> "Base":
        """The base of the params' task.

        Args:
            params: their seed is that of the demonstrations and of the clone, when it has to be made.
            root: `bases/` in it is where it is made.

        Raises:
            ArtifactError: params name a folder outside of what `{task}` stands for, and it does not exist.
        """
        from stages.policy import hub

        named = Path(params.policy.base_of(params.task))
        if named.exists():
            return cls(named, False, digest_of(named), params)
        if hub.parse(named.as_posix()):
            return cls(named, False, named.as_posix(), params)
        if "{task}" not in params.policy.base:
            raise ArtifactError(
                f"policy.base = {params.policy.base} does not exist; name a checkpoint, or one for each task with "
                "{task} in it: those that are missing are made by `tgrpo demos` and `tgrpo sft`"
            )
        recipe = params.model_dump(mode="json", include={"seed", "task", "sim", "demos", "sft", "gen_reward"})
        recipe["demos"].pop("workers")
        for key in ("timeout_s", "max_restarts", "egl_device"):
            recipe["sim"].pop(key)
        identity = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()
        folder = root / "bases" / f"{params.task.replace('/', '-')}_{identity[:8]}"
        return cls(folder / "checkpoint", True, identity, params)


def ensure_base(base: Base, reporter: Reporter) -> Path:
    """Makes the base where it has to be made and is not there yet.

    Raises:
        TgrpoError: the scripted expert cannot do the task, or there is none for it; see `demos` and `sft`.
    """
    if not base.made or base.path.exists():
        return base.path
    from stages.demos import demos
    from stages.sft import sft

    reporter.note(f"{base.params.task} has no base checkpoint: making one at {base.path}")
    folder = base.path.parent / "demos"
    recorded = [handle.path for handle in demos(base.params, folder, reporter, overwrite=True)]
    sft(base.params, recorded, base.path, reporter)
    return base.path
