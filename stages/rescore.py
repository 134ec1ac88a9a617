"""`tgrpo rescore`: groups + another reward -> the same groups with its rewards, from the recorded scenes.

Nothing is simulated, and neither LIBERO nor torch is needed. What the policy saw and did stays as it was, so advantages of the
new group update the same checkpoint.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from stages.describe import describe
from stages.errors import UsageError
from stages.reward_files import load_reward
from stages.rewards.scorer import Scorer
from stages.store.artifacts import refuse_existing
from stages.store.groups import Group, open_group, write_rescored
from stages.store.handles import Handle
from stages.store.provenance import reference, resolve_reference
from stages.workspace import next_path


def rescore(
    groups: Iterable[Handle], reward: Path, out: Path | None = None, overwrite: bool = False
) -> Iterator[Handle]:
    """Scores each group anew as its handle arrives; yields the handle of each new group.

    Args:
        reward: a reward artifact, or a bare program.
        out: the path of the new group when it ends in `.zarr`, else the folder for them; None numbers them under data/groups.

    Raises:
        ArtifactError: no whole group or reward, or something is at `out` already.
        MismatchError: the reward was written for another task.
        UsageError: one name for several groups, or that of the group itself.
        RewardError: its program is refused or fails; nothing is written then.
    """
    with Scorer(load_reward(reward)) as scorer:
        for number, handle in enumerate(groups):
            if number and out is not None and out.suffix == ".zarr":
                raise UsageError(f"--out {out} names one group, and there are more; name a folder, or pass one group")
            path = out or next_path("groups", ".zarr")
            path = path if path.suffix == ".zarr" else path / handle.path.name
            refuse_existing(path, overwrite)
            if path.resolve() == handle.path.resolve():
                raise UsageError(f"--out {path} is the group that is read; choose another place")
            rescore_group(open_group(handle.path), scorer, reward, path, handle.digest, overwrite)
            yield describe(path)


def rescore_group(
    group: Group, scorer: Scorer, reward: Path, out: Path, digest: str | None = None, overwrite: bool = False
) -> None:
    """The core: writes one group with another reward to `out`.

    Args:
        reward: where the scorer's reward lies.
        digest: the group's, where it is known already.
    """
    attrs = group.attrs
    kept = {
        name: reference(resolve_reference(recorded, group.path), out, recorded["digest"])
        if "path" in recorded
        else recorded
        for name, recorded in attrs.inputs.items()
    }
    inputs = {**kept, "reward": reference(reward, out), "group": reference(group.path, out, digest)}
    params = {**attrs.params, "reward": scorer.reward.to_json()}
    score = scorer.on(attrs.task, group.names, attrs.max_env_steps)
    write_rescored(out, group, replace(attrs, inputs=inputs, params=params), score, overwrite)
