"""`tgrpo advantage`: groups -> advantages, by equations 6, 7 and 8. Needs neither torch nor the simulator."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from stages.algo.advantages import fuse, hold_success, step_advantage, trajectory_advantage, trajectory_return
from stages.describe import describe
from stages.errors import MismatchError
from stages.params import AdvantageParams, Params
from stages.store.advantages import write_advantages
from stages.store.groups import Group, open_group
from stages.store.handles import Handle
from stages.store.provenance import reference
from stages.store.schema import AdvantagesAttrs
from stages.workspace import next_path


def weigh_group(
    group: Group, params: AdvantageParams, out: Path, digest: str | None = None, overwrite: bool = False
) -> Handle:
    """The core: computes one group's advantages and writes them to `out`.

    A group whose returns deviate by no more than `min_return_std` (or not at all) teaches nothing. It is left out whole,
    its KL included, because a policy pulled only by the KL drifts.

    Raises:
        MismatchError: a group of one trajectory, which has nothing to compare with.
    """
    if group.trajectories < 2:
        raise MismatchError(
            f"{group.path} has one trajectory, and advantages compare trajectories; sample with `tgrpo rollout --envs 4`"
        )
    reward, taken = group["reward"][:], group["mask"][:]
    # A held success counts in the returns only. In S, the decisions of the others would be compared with a 16 for which
    # nobody acts any more: all of them bad, no one to be good, and the policy is pushed off whatever it does late.
    returns = trajectory_return(
        *hold_success(reward, taken, group["success"][:]) if params.hold_success else (reward, taken)
    )
    step = step_advantage(reward, taken)
    trajectory = trajectory_advantage(returns)
    a1, a2 = params.weights_of(group.attrs.task)
    fused = fuse(step, trajectory, a1, a2)
    deviation = float(returns.std(ddof=1))
    used = bool(trajectory.any()) and deviation >= params.min_return_std
    write_advantages(
        out,
        AdvantagesAttrs(
            task=group.attrs.task,
            a1=a1,
            a2=a2,
            used=used,
            return_std=deviation,
            iteration=group.attrs.iteration,
            inputs={"group": reference(group.path, out, digest)},
            params=params.model_dump(),
        ),
        step_advantage=np.where(taken, step, 0.0),
        trajectory_advantage=trajectory,
        advantage=np.where(taken, fused, 0.0),
        returns=returns,
        mask=taken & used,
        overwrite=overwrite,
    )
    return describe(out)


def advantages(
    params: Params, groups: Iterable[Handle], out: Path | None = None, overwrite: bool = False
) -> Iterator[Handle]:
    """Computes the advantages of each group as its handle arrives.

    Args:
        out: the path of the artifact when it ends in `.zarr`, else the folder for them; None numbers them under
            data/advantages.
    """
    for handle in groups:
        path = out or next_path("advantages", ".zarr")
        path = path if path.suffix == ".zarr" else path / handle.path.name
        yield weigh_group(open_group(handle.path), params.advantage, path, handle.digest, overwrite)
