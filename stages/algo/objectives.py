"""What is maximised for each decision: eq. 1-4 and 9 of TGRPO (arXiv:2506.08440), and -E[A log pi]. PyTorch.

B is a policy decision of a minibatch, A the action token within it (7). Log-probs are in nats. `old` is the policy that
sampled the data: its log-probs are recorded numbers and carry no gradient.
"""

from typing import Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

Per = Literal["token", "action"]


def ratio(log_prob: Tensor, old_log_prob: Tensor, per: Per = "token") -> Tensor:
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


def log_prob_surrogate(log_prob: Tensor, advantage: Tensor, per: Per = "token") -> Tensor:
    """A log pi(o)    (minus the loss L = -E[A log pi(a|s)] of the post on TGRPO; REINFORCE, Williams 1992)

    Where pi is still the policy that sampled, r = 1 and its gradient is that of `surrogate`. It has no memory of that
    policy: after many updates on the same data it pulls without limit, which a ratio with a clip does not.

    Args:
        log_prob: (B, A) of the sampled tokens; advantage: (B, 1); per: as in `ratio`.

    Returns:
        (B, A) per token, (B, 1) per action.
    """
    return advantage * (log_prob if per == "token" else log_prob.sum(dim=-1, keepdim=True))


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
