"""PPO's learned value head: a small network on what the policy knows before it writes its first action token.

The features are the policy's last hidden state there: image, proprioception and instruction, no action yet. They are
detached, so that the critic's errors, large at first, never reach the policy, and one forward pass serves both. It costs
nothing but its own two layers, 25 thousand weights on openvla-tiny and one million on a 7B policy.
"""

from typing import Any

import torch
from torch import Tensor, nn

WIDTH = 256
MEMORY = 10  # updates over which the mean and deviation of returns are remembered


class Critic(nn.Module):
    """V(s) = mean + std f(s), f a network of one hidden layer that answers in units of the returns' own spread.

    Returns of a dense reward reach thousands, and their scale changes as the policy improves. Mean and deviation follow them
    (PopArt, van Hasselt et al., arXiv:1602.07714): when they move, the last layer is changed so that every V stays what it
    was. A new critic answers with one constant.
    """

    mean: Tensor
    std: Tensor
    updates: Tensor

    def __init__(self, features: int, seed: int) -> None:
        """`features` is the policy's hidden size; the same seed gives the same weights."""
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.body = nn.Sequential(nn.Linear(features, WIDTH), nn.Tanh())
            self.head = nn.Linear(WIDTH, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self.register_buffer("mean", torch.zeros((), dtype=torch.float64))
        self.register_buffer("std", torch.ones((), dtype=torch.float64))
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))  # how often the returns were looked at

    def forward(self, state: Tensor) -> Tensor:
        """f: (B, features) of any float dtype -> (B,) float32, in deviations of the returns from their mean."""
        return self.head(self.body(state.float())).squeeze(-1)

    def value(self, state: Tensor) -> Tensor:
        """V: (B, features) -> (B,) float64, in the unit of the rewards."""
        return self.mean + self.std * self(state).double()

    def normalised(self, value: Tensor) -> Tensor:
        """(B,) values in the unit of the rewards -> (B,) float32 in the unit of `forward`."""
        return ((value - self.mean) / self.std).float()

    @property
    def is_new(self) -> bool:
        """Whether it has never seen a return."""
        return int(self.updates) == 0

    @torch.no_grad()
    def start_at(self, value: float) -> None:
        """Makes a new critic's constant `value`."""
        self.mean.fill_(value)

    @torch.no_grad()
    def follow(self, returns: Tensor) -> None:
        """Moves mean and deviation towards those of the returns (B,); every V stays, but for a new critic's constant."""
        self.updates += 1
        rate = max(1.0 / int(self.updates), 1.0 / MEMORY)
        old_mean, old_std = self.mean.clone(), self.std.clone()
        second = torch.lerp(old_std**2 + old_mean**2, (returns.double() ** 2).mean(), rate)
        if int(self.updates) == 1:  # the constant was a guess, and its deviation none
            self.mean.copy_(returns.double().mean())
            self.std.copy_(_spread(returns.double().std(correction=0), self.mean))
            return
        self.mean.lerp_(returns.double().mean(), rate)
        self.std.copy_(_spread((second - self.mean**2).clamp(min=0).sqrt(), self.mean))
        self.head.weight.mul_((old_std / self.std).float())
        self.head.bias.copy_((old_std * self.head.bias.double() + old_mean - self.mean) / self.std)

    def stored(self) -> dict[str, Tensor]:
        """Weights, mean and deviation by name, as contiguous copies on the CPU."""
        return {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in self.state_dict().items()}

    def restore(self, state: dict[str, Any]) -> None:
        """Takes up what `stored` gave.

        Raises:
            RuntimeError: the state is another critic's; see `nn.Module.load_state_dict`.
        """
        self.load_state_dict(state)


def _spread(std: Tensor, mean: Tensor) -> Tensor:
    """A deviation to divide by: equal returns have none, and one of rounding would blow differences up."""
    return torch.maximum(std, 1e-6 * mean.abs().clamp(min=1.0))
