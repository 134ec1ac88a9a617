"""`tgrpo rollout`: checkpoint + reward -> trajectory groups.

G environments start from one initial state of LIBERO's placement sampler, the policy samples an action for each, and the
reward program scores every state that follows (`sampling.py`). A group is on disk while it grows and valid when whole.
Seeds depend on the run's seed, the checkpoint's iteration and the group's index alone.
"""

from collections.abc import Iterator
from pathlib import Path

from stages.errors import UsageError
from stages.gen_reward import built_in
from stages.params import Params
from stages.reporting import Reporter
from stages.reward_files import load_reward
from stages.rewards.scorer import Scorer
from stages.sampling import Wanted, open_sampling_env, sample_groups
from stages.store.handles import Handle
from stages.store.provenance import reference
from stages.trust import refuse_unverified
from stages.workspace import next_path, open_checkpoint, open_policy, require_fit, task_reward


def rollout(
    params: Params,
    checkpoint: Path,
    reward: Path | None = None,
    out: Path | None = None,
    reporter: Reporter | None = None,
    overwrite: bool = False,
    unverified: bool = False,
) -> Iterator[Handle]:
    """Samples `rollout.groups` groups of `rollout.envs` trajectories; yields each handle as soon as its group is whole.

    Args:
        out: the path of the group when it ends in .zarr, else the folder for the groups; None numbers them under
            data/groups.
        unverified: take a reward without a report that it passed.

    Raises:
        ArtifactError, MismatchError, RewardError: see `open_policy`, `task_reward`, `refuse_unverified`, `sample_groups`.
        SimulatorError: the simulator cannot start.
    """
    params, checkpoint = open_checkpoint(params, checkpoint)
    if not unverified:
        refuse_unverified(load_reward(reward) if reward else built_in(params), reward, params.task)
    iteration = require_fit(params, checkpoint).details["iteration"] + 1
    paths = group_paths(out, params.rollout.groups)
    wanted = [Wanted(index, path, group_inputs(path, checkpoint, reward)) for index, path in enumerate(paths)]
    with open_sampling_env(params) as env, Scorer(task_reward(params, env, reward)) as scorer:
        policy = open_policy(params, checkpoint)
        yield from sample_groups(
            policy, env, scorer, params, wanted, iteration=iteration, overwrite=overwrite, reporter=reporter
        )


def group_paths(out: Path | None, groups: int) -> list[Path]:
    """Where groups go: `out` itself when that ends in .zarr, else numbered names in the folder `out`; None takes the next
    free numbers under data/groups.

    Raises:
        UsageError: several groups for one name.
    """
    if out is None:
        first = next_path("groups", ".zarr")
        return [first.with_name(f"{int(first.stem) + index:04d}.zarr") for index in range(groups)]
    if out.suffix != ".zarr":
        return [out / f"{index:03d}.zarr" for index in range(groups)]
    if groups > 1:
        raise UsageError(f"--out {out} names one group, but {groups} are asked for; add --groups 1 or name a folder")
    return [out]


def group_inputs(path: Path, checkpoint: Path, reward: Path | None) -> dict[str, dict[str, str]]:
    """What a group is made from, by digest."""
    inputs = {"checkpoint": reference(checkpoint, path)}
    return inputs | {"reward": reference(reward, path)} if reward else inputs
