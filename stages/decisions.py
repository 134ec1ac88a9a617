"""What an update learns from: the decisions of all groups that count, flattened to one axis."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from stages.algo.losses import decision_weights
from stages.errors import MismatchError
from stages.store.advantages import Advantages
from stages.store.groups import Group

if TYPE_CHECKING:
    from stages.policy.images import PreparedImages


@dataclass(frozen=True)
class Decisions:
    """B decisions of one instruction, sampled at one temperature."""

    image: "NDArray[np.uint8] | PreparedImages"  # (B, H, W, 3), or what the policy made of them
    proprio: NDArray[np.float32]  # (B, 8)
    action_token: NDArray[np.int64]  # (B, 7)
    log_prob: NDArray[np.float32]  # (B, 7) as recorded
    advantage: NDArray[np.float32]  # (B,) not zero
    weight: NDArray[np.float32]  # (B,) of each decision in the objective, see `gather_decisions`
    instruction: str
    temperature: float

    def __len__(self) -> int:
        return len(self.advantage)

    def take(self, rows: NDArray[np.int64]) -> "Decisions":
        """The decisions at `rows`, in that order."""
        columns = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(
            self,
            **{name: column[rows] for name, column in columns.items() if name not in ("instruction", "temperature")},
        )


def gather_decisions(pairs: Sequence[tuple[Group, Advantages]], token_ids: range) -> Decisions | None:
    """Collects the decisions to learn from: taken, of a group in use, and with an advantage that is not exactly zero.

    A decision without advantage would cost as much as any other and pull through the KL alone. The weights are those of
    `decision_weights` over all decisions of the groups in use, times the share that is left: the mean of w x over the
    decisions that are left is then the same objective as if the others had been there with x = 0.

    Args:
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
    taken = [advantages.mask for _, advantages in used]
    chosen = [mask & (advantages.advantage != 0) for mask, (_, advantages) in zip(taken, used, strict=True)]
    left = sum(int(mask.sum()) for mask in chosen)
    if not left:
        return None
    weights = decision_weights(np.concatenate([mask.sum(1) for mask in taken]))
    weights *= left / sum(int(mask.sum()) for mask in taken)
    by_group = np.split(weights, np.cumsum([len(mask) for mask in taken])[:-1])

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
        weight=np.concatenate(
            [np.broadcast_to(w[:, None], mask.shape)[mask] for w, mask in zip(by_group, chosen, strict=True)]
        ).astype(np.float32),
        instruction=first.attrs.instruction,
        temperature=first.attrs.temperature,
    )


def _refuse_misfit(group: Group, first: Group) -> None:
    for name in ("instruction", "temperature"):
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
