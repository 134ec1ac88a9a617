"""KL[pi || pi_ref] to the reference policy, estimated or exact (the D_KL of arXiv:2506.08440, eq. 3 and 9). PyTorch.

The paper does not name its estimator. B is a policy decision of a minibatch, A the action token within it (7), V an entry
of the action vocabulary (256). Log-probs are in nats.
"""

from torch import Tensor, exp


def kl_k1(log_prob: Tensor, ref_log_prob: Tensor) -> Tensor:
    """log pi(o) - log pi_ref(o), an unbiased sample of KL[pi || pi_ref] for o ~ pi    (Schulman's k1, 2020)

    For watching rather than for training: its gradient, that of log pi(o), is zero in expectation and pulls nowhere.
    (B, A), (B, A) -> (B, A), of either sign.
    """
    return log_prob - ref_log_prob


def kl_k3(log_prob: Tensor, ref_log_prob: Tensor) -> Tensor:
    """pi_ref(o)/pi(o) - log(pi_ref(o)/pi(o)) - 1    (Schulman's k3, 2020; DeepSeekMath, arXiv:2402.03300, eq. 4)

    Unbiased for o ~ pi, never negative. Its gradient is in expectation that of KL[pi_ref || pi], the other way round,
    which agrees with that of KL[pi || pi_ref] near the reference. (B, A), (B, A) -> (B, A).
    """
    log_ratio = ref_log_prob - log_prob
    return exp(log_ratio) - log_ratio - 1


def kl_exact(log_probs_all: Tensor, ref_log_probs_all: Tensor) -> Tensor:
    """sum_v pi(v) (log pi(v) - log pi_ref(v)), the KL[pi || pi_ref] of each token's distribution itself.

    (B, A, V), (B, A, V), both normalised over V and finite -> (B, A).
    """
    return (log_probs_all.exp() * (log_probs_all - ref_log_probs_all)).sum(dim=-1)
