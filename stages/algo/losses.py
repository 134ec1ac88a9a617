"""The loss of one minibatch, from an objective of `objectives` and a KL of `kl`, and its statistics. PyTorch."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Literal

import torch
from torch import Tensor

from stages.algo.kl import kl_k3
from stages.algo.objectives import Per, clipped_surrogate, log_prob_surrogate, ratio, surrogate


@dataclass(frozen=True)
class LossStats:
    """What one minibatch looked like: plain means over its decisions and tokens, without gradient."""

    loss: float
    surrogate: float  # the weighted objective without the KL
    kl: float  # to the reference policy, per token, as estimated for the loss
    approx_kl: float  # from the sampling policy to the current one, k3 per token
    clip_fraction: float  # ratios outside 1 -+ epsilon; 0 when nothing is clipped
    value_loss: float = math.nan  # of a critic; NaN where there is none

    @classmethod
    def pooled(cls, parts: Sequence["LossStats"], sizes: Sequence[int]) -> "LossStats":
        """The statistics of a whole from those of its parts, which hold `sizes` decisions."""
        shares = [size / sum(sizes) for size in sizes]

        def pool(name: str) -> float:
            return sum(share * getattr(part, name) for share, part in zip(shares, parts, strict=True))

        return cls(**{field.name: pool(field.name) for field in fields(cls)})


def policy_loss(
    log_prob: Tensor,
    old_log_prob: Tensor,
    advantage: Tensor,
    weight: Tensor,
    kl: Tensor,
    *,
    epsilon: float,
    beta: float,
    per: Per = "token",
    objective: Literal["ratio", "log_prob"] = "ratio",
) -> tuple[Tensor, LossStats]:
    """-1/B sum_b w_b [ term_b - beta KL_b ]    (minus eq. 9; minus eq. 3 when epsilon > 0; or the post's -E[A log pi])

    The term and the KL are means over the A tokens of a decision. With `per="action"` there is one ratio (one log-prob),
    hence no mean to take, and the KL stays a mean per token, so that beta means the same in both.

    Args:
        log_prob: (B, A) of the sampled tokens under the current policy, with gradient.
        old_log_prob: (B, A) as recorded when they were sampled.
        advantage: (B,) Adv of eq. 8, or what another algorithm has in its place.
        weight: (B,) from `decision_weights`; all ones gives every decision the same say.
        kl: (B, A) one of the estimates of `kl`, with gradient unless beta is 0.
        epsilon: the clip range; 0 is the unclipped objective of eq. 9. Not read by `objective="log_prob"`.
        beta: weight of the KL.
        per: what a ratio spans, see `objectives.ratio`.
        objective: whether the advantage multiplies the ratio or the log-prob.

    Returns:
        The scalar to minimise, and its statistics.
    """
    adv = advantage[:, None]
    clipped = objective == "ratio" and epsilon > 0
    r = ratio(log_prob, old_log_prob, per)
    if objective == "log_prob":
        term = log_prob_surrogate(log_prob, adv, per)
    else:
        term = clipped_surrogate(r, adv, epsilon) if clipped else surrogate(r, adv)
    mean = (weight * term.mean(dim=-1)).mean()
    loss = -mean + beta * (weight * kl.mean(dim=-1)).mean() if beta > 0 else -mean
    with torch.no_grad():
        stats = LossStats(
            loss=loss.item(),
            surrogate=mean.item(),
            kl=kl.mean().item(),
            approx_kl=kl_k3(old_log_prob, log_prob).mean().item(),
            clip_fraction=((r - 1).abs() > epsilon).float().mean().item() if clipped else 0.0,
        )
    return loss, stats
