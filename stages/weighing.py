"""What each `update.algo` makes of a group's rewards: which decisions it learns from, and with which advantage.

The groups are the same for all of them, so that a comparison differs in nothing else. An algorithm whose baseline is the
group (all but PPO and SFT) learns nothing from a group whose returns do not differ, and leaves it out whole: its KL too,
because a policy that is pulled by the KL alone drifts. What each paper defines stands in `docs/algorithm.md`.
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from stages.algo.advantages import (
    ended_in_success,
    fuse,
    group_advantage,
    hold_success,
    step_advantage,
    trajectory_advantage,
    trajectory_return,
)
from stages.algo.auto_weights import auto_weights
from stages.algo.milestones import milestone_advantage
from stages.algo.reinforce import reinforce_advantage, reward_to_go
from stages.errors import ArtifactError, MismatchError
from stages.params import AdvantageParams, UpdateParams
from stages.recipe import COMPARES_NOTHING
from stages.store.groups import Group

FIXED_WEIGHTS = {"tgrpo_no_t": (1.0, 0.0), "tgrpo_no_s": (0.0, 1.0)}  # a1, a2 of the paper's ablation (section 4.3)


@dataclass(frozen=True)
class Weighed:
    """What an update learns a group with. Shapes as in `stages.store.advantages.Advantages`."""

    step: NDArray[np.float64]  # (G, T) S, zero for algorithms without it
    trajectory: NDArray[np.float64]  # (G,) T, likewise
    advantage: NDArray[np.float64]  # (G, T) zero where PPO and GRAPE have the update find it
    returns: NDArray[np.float64]  # (G,) what is compared or ranked
    success: NDArray[np.bool_]  # (G,) ended in success
    mask: NDArray[np.bool_]  # (G, T) decisions to train on
    a1: float = 0.0
    a2: float = 0.0
    left_out: str = ""  # why the group is left out; empty when it is used


def weigh(group: Group, advantage: AdvantageParams, update: UpdateParams) -> Weighed:
    """Weighs a group for `update.algo`; of `update` nothing else counts but `gamma`.

    Raises:
        MismatchError: one trajectory, for an algorithm that compares trajectories.
        ArtifactError: a reward that is not finite.
    """
    algo = update.algo
    if group.trajectories < 2 and algo not in COMPARES_NOTHING:
        raise MismatchError(
            f"{group.path} has one trajectory, and {algo} compares trajectories; sample with `tgrpo rollout --envs 4`"
        )
    reward, taken, success = group["reward"][:].astype(np.float64), group["mask"][:], group["success"][:]
    _refuse_infinite(group, reward, taken)
    # A held success counts in the returns only. In S, the decisions of the others would be compared with a 16 for which
    # nobody acts any more: all of them bad, no one to be good, and the policy is pushed off whatever it does late.
    counted, until = hold_success(reward, taken, success) if advantage.hold_success else (reward, taken)
    plain = Weighed(
        step=np.zeros(reward.shape),
        trajectory=np.zeros(len(reward)),
        advantage=np.zeros(reward.shape),
        returns=trajectory_return(counted, until),
        success=ended_in_success(taken, success),
        mask=taken,
    )
    keep = advantage.zero_variance == "keep"
    if algo == "ppo":
        return plain
    if algo == "sft":
        return _imitated(plain)
    if algo == "grpo":
        return _by_outcome(plain, keep)
    if algo == "grape":
        weighed = plain
    elif algo == "reinforce":
        weighed = replace(plain, advantage=reinforce_advantage(reward_to_go(counted, until, update.gamma), taken))
    else:
        milestone = group["milestone"][:] if advantage.group_by == "milestone" else None
        weights = None if advantage.weights == "auto" else advantage.weights_of(group.attrs.task)
        weighed = _fused(plain, reward, milestone, FIXED_WEIGHTS.get(algo, weights))
    return _without_equal_returns(weighed, reward, advantage.min_return_std, keep, ranks=algo == "grape")


def _fused(
    plain: Weighed,
    reward: NDArray[np.float64],
    milestone: NDArray[np.int8] | None,
    weights: tuple[float, float] | None,
) -> Weighed:
    """TGRPO: eq. 8, with S among the decisions of one milestone when `milestone` is given; `weights` None finds them."""
    taken = plain.mask
    step = step_advantage(reward, taken) if milestone is None else milestone_advantage(reward, taken, milestone)
    trajectory = trajectory_advantage(plain.returns)
    a1, a2 = auto_weights(step, trajectory, taken) if weights is None else weights
    fused = np.where(taken, fuse(step, trajectory, a1, a2), 0.0)
    return replace(plain, step=step, trajectory=trajectory, advantage=fused, a1=a1, a2=a2)


def _by_outcome(plain: Weighed, keep: bool) -> Weighed:
    """GRPO: eq. 5 on the 0/1 outcome, the same for every decision of a trajectory."""
    outcome = plain.success.astype(np.float64)
    trajectory = group_advantage(outcome)
    weighed = replace(
        plain,
        trajectory=trajectory,
        advantage=np.where(plain.mask, trajectory[:, None], 0.0),
        returns=outcome,
        a2=1.0,
    )
    how_many = "all" if outcome.all() else "none"
    return weighed if trajectory.any() or keep else _left_out(weighed, f"{how_many} of its trajectories succeeded")


def _imitated(plain: Weighed) -> Weighed:
    """SFT: every decision of a successful trajectory counts 1, all others nothing."""
    imitate = plain.mask & plain.success[:, None]
    weighed = replace(plain, advantage=imitate.astype(np.float64), mask=imitate)
    return weighed if imitate.any() else _left_out(weighed, "none of its trajectories succeeded")


def _without_equal_returns(
    weighed: Weighed, reward: NDArray[np.float64], min_return_std: float, keep: bool, *, ranks: bool
) -> Weighed:
    """Leaves a group out that compares to nothing: equal returns, or closer ones than asked for, or no advantage.

    With `keep` (advantage.zero_variance) only closer returns than asked for leave it out; grape's pairs need different ones.
    """
    if keep and not ranks and min_return_std == 0:
        return weighed
    deviation = return_std(weighed.returns)
    taken = reward[weighed.mask]
    if not group_advantage(weighed.returns).any():
        everywhere = f"every reward is {taken[0]:g}" if (taken == taken[0]).all() else "all returns are equal"
        return _left_out(weighed, everywhere)
    if deviation < min_return_std:
        return _left_out(
            weighed, f"its returns deviate by {deviation:.3g}, less than advantage.min_return_std = {min_return_std:g}"
        )
    if not ranks and not weighed.advantage.any():
        return _left_out(weighed, "no decision has an advantage")
    return weighed


def return_std(returns: NDArray[np.float64]) -> float:
    """Sample standard deviation of the (G,) returns; 0 for a single one."""
    return float(returns.std(ddof=1)) if len(returns) > 1 else 0.0


def _left_out(weighed: Weighed, why: str) -> Weighed:
    return replace(weighed, mask=np.zeros_like(weighed.mask), left_out=why)


def _refuse_infinite(group: Group, reward: NDArray[np.float64], taken: NDArray[np.bool_]) -> None:
    bad = np.argwhere(taken & ~np.isfinite(reward))
    if len(bad):
        trajectory, decision = bad[0]
        more = f" (and {len(bad) - 1} more)" if len(bad) > 1 else ""
        raise ArtifactError(
            f"{group.path}: the reward of trajectory {trajectory} after decision {decision} is "
            f"{reward[trajectory, decision]}{more}, expected a finite number; mend the reward program and sample again with "
            "`tgrpo rollout`"
        )
