"""The critic's loss in PPO (Schulman et al., arXiv:1707.06347, eq. 9), with the clip of its authors' code. PyTorch."""

import torch
from torch import Tensor


def value_loss(value: Tensor, target: Tensor, old_value: Tensor, clip: float) -> Tensor:
    """1/2 mean max((V - R)^2, (V_old + clip(V - V_old, -c, c) - R)^2)    (1/2 mean (V - R)^2 when c is 0)

    Args:
        value: (B,) V of the critic, with gradient.
        target: (B,) R, what it should be.
        old_value: (B,) V before the update.
        clip: c, how far a value gains by moving from the old one, in the unit of the values; 0 does not limit it.

    Returns:
        The scalar to minimise.
    """
    error = (value - target) ** 2
    if clip > 0:
        held = old_value + (value - old_value).clamp(-clip, clip)
        error = torch.maximum(error, (held - target) ** 2)
    return 0.5 * error.mean()
