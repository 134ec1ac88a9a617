"""The policy objectives, clipped and unclipped, and KL estimates of TGRPO (arXiv:2506.08440, eq. 1-4 and 9). PyTorch.

B is a policy decision of a minibatch, A the action token within it (7), V an entry of the action vocabulary (256).
Log-probs and entropies are in nats. `old` is the policy that sampled the data: its log-probs are recorded numbers and
carry no gradient.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor


def ratio(log_prob: Tensor, old_log_prob: Tensor, per: Literal["token", "action"] = "token") -> Tensor:
    """r = pi(o) / pi_old(o) = exp(log pi(o) - log pi_old(o))    (eq. 1 and 4)

    Args:
        log_prob, old_log_prob: (B, A) log-probs of the sampled tokens under the current and the sampling policy.
        per: "token" gives every token its own ratio (eq. 4); "action" takes o as all A tokens of a decision, whose
            log-prob is the sum of theirs.

    Returns:
        (B, A) per token, (B, 1) per action, so that an advantage (B, 1) multiplies both.
    """
    difference = log_prob - old_log_prob.detach()
    return torch.exp(difference if per == "token" else difference.sum(dim=-1, keepdim=True))


def surrogate(ratio: Tensor, advantage: Tensor) -> Tensor:
    """r A    (the term of eq. 9). Any shapes that broadcast."""
    return ratio * advantage


def clipped_surrogate(ratio: Tensor, advantage: Tensor, epsilon: float) -> Tensor:
    """min(r A, clip(r, 1 - epsilon, 1 + epsilon) A)    (the term of eq. 2 and 3). Any shapes that broadcast."""
    return torch.minimum(ratio * advantage, torch.clamp(ratio, 1 - epsilon, 1 + epsilon) * advantage)


def kl_k1(log_prob: Tensor, ref_log_prob: Tensor) -> Tensor:
    """log pi(o) - log pi_ref(o), an unbiased sample of KL[pi || pi_ref] for o ~ pi    (Schulman's k1, 2020)

    For watching rather than for training: its gradient, that of log pi(o), is zero in expectation and pulls nowhere.
    (B, A), (B, A) -> (B, A), of either sign.
    """
    return log_prob - ref_log_prob


def kl_k3(log_prob: Tensor, ref_log_prob: Tensor) -> Tensor:
    """pi_ref(o)/pi(o) - log(pi_ref(o)/pi(o)) - 1    (Schulman's k3, 2020; DeepSeekMath, arXiv:2402.03300, eq. 4)

    Unbiased for o ~ pi, never negative. (B, A), (B, A) -> (B, A).
    """
    log_ratio = ref_log_prob - log_prob
    return torch.exp(log_ratio) - log_ratio - 1


def kl_exact(log_probs_all: Tensor, ref_log_probs_all: Tensor) -> Tensor:
    """sum_v pi(v) (log pi(v) - log pi_ref(v)), the KL[pi || pi_ref] of each token's distribution itself.

    (B, A, V), (B, A, V), both normalised over V and finite -> (B, A).
    """
    return (log_probs_all.exp() * (log_probs_all - ref_log_probs_all)).sum(dim=-1)


def decision_weights(lengths: ArrayLike) -> NDArray[np.float64]:
    """w_i = N / (M |o_i|), the weight of each decision of trajectory i    (the 1/M sum_i 1/|o_i| sum_t of eq. 3 and 9)

    Over all N = sum_i |o_i| decisions of the M trajectories the weights average 1 and

        1/N sum_{i,t} w_i x_it  =  1/M sum_i 1/|o_i| sum_t x_it

    so the mean of w x over any minibatch drawn from the N is an unbiased estimate of the objective, however the
    decisions of short and long trajectories are mixed.

    Args:
        lengths: (M,) |o_i|, decisions trained on, over all groups of the update. Trajectories of length 0 do not count.

    Returns:
        (M,), zero where the length is.
    """
    steps = np.asarray(lengths, np.float64)
    taken = steps > 0
    return np.where(taken, steps.sum() / (max(taken.sum(), 1) * np.where(taken, steps, 1.0)), 0.0)


@dataclass(frozen=True)
class LossStats:
    """What one minibatch looked like: plain means over its decisions and tokens, without gradient."""

    loss: float
    surrogate: float  # the weighted objective without the KL
    kl: float  # to the reference policy, per token, as estimated for the loss
    approx_kl: float  # from the sampling policy to the current one, k3 per token
    entropy: float  # of the current policy, per token
    ratio_mean: float
    ratio_max: float
    clip_fraction: float  # ratios outside 1 -+ epsilon; 0 when nothing is clipped

    @classmethod
    def pooled(cls, parts: Sequence["LossStats"], sizes: Sequence[int]) -> "LossStats":
        """The statistics of a minibatch from those of its parts, which hold `sizes` decisions."""
        shares = [size / sum(sizes) for size in sizes]

        def pool(name: str) -> float:
            values = [getattr(part, name) for part in parts]
            if name == "ratio_max":
                return max(values)
            return sum(share * value for share, value in zip(shares, values, strict=True))

        return cls(**{field.name: pool(field.name) for field in fields(cls)})


def tgrpo_loss(
    log_prob: Tensor,
    old_log_prob: Tensor,
    advantage: Tensor,
    weight: Tensor,
    kl: Tensor,
    entropy: Tensor,
    *,
    epsilon: float,
    beta: float,
    per: Literal["token", "action"] = "token",
) -> tuple[Tensor, LossStats]:
    """-1/B sum_b w_b [ surrogate(r_b, Adv_b) - beta KL_b ]    (minus eq. 9; minus eq. 3 when epsilon > 0)

    surrogate and KL are means over the A tokens of a decision. With `per="action"` there is one ratio, hence no mean to
    take, and the KL stays a mean per token, so that beta means the same in both.

    Args:
        log_prob: (B, A) of the sampled tokens under the current policy, with gradient.
        old_log_prob: (B, A) as recorded when they were sampled.
        advantage: (B,) Adv of eq. 8.
        weight: (B,) from `decision_weights`; all ones gives every decision the same say.
        kl: (B, A) one of the estimates above, with gradient unless beta is 0.
        entropy: (B, A), only reported.
        epsilon: the clip range; 0 is the unclipped objective of eq. 9.
        beta: weight of the KL.
        per: what a ratio spans, see `ratio`.

    Returns:
        The scalar to minimise, and its statistics.
    """
    r = ratio(log_prob, old_log_prob, per)
    adv = advantage[:, None]
    term = clipped_surrogate(r, adv, epsilon) if epsilon > 0 else surrogate(r, adv)
    objective = (weight * term.mean(dim=-1)).mean()
    loss = -objective + beta * (weight * kl.mean(dim=-1)).mean() if beta > 0 else -objective
    with torch.no_grad():
        stats = LossStats(
            loss=loss.item(),
            surrogate=objective.item(),
            kl=kl.mean().item(),
            approx_kl=kl_k3(old_log_prob, log_prob).mean().item(),
            entropy=entropy.mean().item(),
            ratio_mean=r.mean().item(),
            ratio_max=r.max().item(),
            clip_fraction=((r - 1).abs() > epsilon).float().mean().item() if epsilon > 0 else 0.0,
        )
    return loss, stats
