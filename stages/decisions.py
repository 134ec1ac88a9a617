"""What an update learns from: the decisions of all groups that count, flattened to one axis."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from stages.algo.objectives import decision_weights
from stages.errors import MismatchError
from stages.recipe import averages_trajectories, needs_all_decisions
from stages.store.advantages import Advantages
from stages.store.groups import Group

if TYPE_CHECKING:
    from stages.policy.images import PreparedImages

OF_ALL = ("instruction", "temperature", "hold_success")  # fields of `Decisions` that are no columns


@dataclass(frozen=True)
class Decisions:
    """B decisions of one instruction, sampled at one temperature, by group, trajectory and step."""

    image: "NDArray[np.uint8] | PreparedImages"  # (B, H, W, 3), or what the policy made of them
    proprio: NDArray[np.float32]  # (B, 8)
    action_token: NDArray[np.int64]  # (B, 7)
    log_prob: NDArray[np.float32]  # (B, 7) as recorded
    advantage: NDArray[np.float32]  # (B,) not zero, or not known yet (ppo, grape)
    weight: NDArray[np.float32]  # (B,) of each decision in the objective, see `gather_decisions`
    step: NDArray[np.int64]  # (B,) its t within the trajectory
    trajectory: NDArray[np.int64]  # (B,) counted over all groups of the update
    group: NDArray[np.int64]  # (B,) counted over the groups in use
    reward: NDArray[np.float32]  # (B,) of the state after it
    success: NDArray[np.bool_]  # (B,) the goal holds after it
    returns: NDArray[np.float64]  # (B,) of its trajectory, as its advantages artifact has it
    instruction: str
    temperature: float
    hold_success: bool  # whether a trajectory that ended in success goes on earning its last reward

    def __len__(self) -> int:
        return len(self.advantage)

    def take(self, rows: NDArray[np.int64]) -> "Decisions":
        """The decisions at `rows`, in that order."""
        columns = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(self, **{name: column[rows] for name, column in columns.items() if name not in OF_ALL})


def gather_decisions(pairs: Sequence[tuple[Group, Advantages]], token_ids: range) -> Decisions | None:
    """Collects the decisions to learn from: taken, of a group in use, and with an advantage that is not exactly zero.

    A decision without advantage would cost as much as any other and pull through the KL alone. Only `ppo` and `grape`, which
    find their advantages while they update, take all. The weights are those of `decision_weights` over all decisions of the
    groups in use, or one for each (`recipe.averages_trajectories`), times the share that is left: the mean of w x over the
    decisions that are left is then the same objective as if the others had been there with x = 0.

    Args:
        pairs: groups and their advantages, all of one `update.algo`.
        token_ids: the ids among which the policy chooses.

    Returns:
        None when there is none: all groups have equal returns, or no advantage differs from zero.

    Raises:
        MismatchError: groups of several instructions or temperatures, sampled greedily, or with tokens that the policy
            cannot have sampled.
    """
    used = [(group, advantages) for group, advantages in pairs if advantages.attrs.used]
    if not used:
        return None
    first = used[0][0]
    for group, _ in used:
        _refuse_misfit(group, first)
    algo = used[0][1].attrs.algo
    taken = [advantages.mask for _, advantages in used]
    chosen = [
        mask if needs_all_decisions(algo) or _keeps_all(advantages) else mask & (advantages.advantage != 0)
        for mask, (_, advantages) in zip(taken, used, strict=True)
    ]
    left = sum(int(mask.sum()) for mask in chosen)
    if not left:
        return None
    lengths = np.concatenate([mask.sum(1) for mask in taken])
    weights = decision_weights(lengths) if averages_trajectories(algo) else np.ones(len(lengths))
    weights *= left / lengths.sum()
    of_each = np.concatenate([mask.sum(1) for mask in chosen])  # decisions that are left of each trajectory

    def column(name: str) -> NDArray:
        return np.concatenate([group[name][:][mask] for (group, _), mask in zip(used, chosen, strict=True)])

    tokens = [group["action_token"][:][mask].astype(np.int64) for (group, _), mask in zip(used, chosen, strict=True)]
    for (group, _), found in zip(used, tokens, strict=True):
        if len(found) and (found.min() < token_ids.start or found.max() >= token_ids.stop):
            raise MismatchError(
                f"{group.path} holds tokens {found.min()} to {found.max()}, and this policy chooses among {token_ids.start} "
                f"to {token_ids.stop - 1}; set policy.sampling as it was for the rollout, or sample again"
            )
    return Decisions(
        image=column("image"),
        proprio=column("proprio"),
        action_token=np.concatenate(tokens),
        log_prob=column("log_prob"),
        advantage=np.concatenate(
            [advantages.advantage[mask] for (_, advantages), mask in zip(used, chosen, strict=True)]
        ).astype(np.float32),
        weight=np.repeat(weights, of_each).astype(np.float32),
        step=np.concatenate([np.nonzero(mask)[1] for mask in chosen]),
        trajectory=np.repeat(np.arange(len(of_each)), of_each),
        group=np.repeat(np.arange(len(chosen)), [int(mask.sum()) for mask in chosen]),
        reward=column("reward"),
        success=column("success"),
        returns=np.repeat(np.concatenate([advantages.returns for _, advantages in used]), of_each),
        instruction=first.attrs.instruction,
        temperature=first.attrs.temperature,
        hold_success=bool(used[0][1].attrs.params["advantage"]["hold_success"]),
    )


def _keeps_all(advantages: Advantages) -> bool:
    """Whether decisions without advantage stay for their KL, as eq. 9 has it for every t: advantage.zero_variance = keep."""
    return bool(advantages.attrs.params["advantage"].get("zero_variance") == "keep")


def _refuse_misfit(group: Group, first: Group) -> None:
    if group.attrs.image_size == 0:
        raise MismatchError(f"{group.path} holds no images (probes keep none); update on groups of `tgrpo rollout`")
    for name in ("instruction", "temperature", "image_size"):
        found, expected = getattr(group.attrs, name), getattr(first.attrs, name)
        if found != expected:
            raise MismatchError(
                f"{group.path} has {name} {found!r}, but {first.path} has {expected!r}; update on groups of one rollout"
            )
    if group.attrs.temperature == 0:
        raise MismatchError(
            f"{group.path} was sampled greedily (temperature 0), which no ratio of probabilities can learn from; "
            "sample with rollout.temperature=1"
        )
