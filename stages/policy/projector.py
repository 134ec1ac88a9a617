"""What carries image features and proprioception into the language model's embedding space."""

from torch import Tensor, nn
from torch.nn import functional as F


class FusedProjector(nn.Module):
    """OpenVLA's `fused-gelu-mlp` projector: (..., vision_dim) -> (..., hidden_size), by way of 4 vision_dim."""

    def __init__(self, vision_dim: int, hidden_size: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(vision_dim, 4 * vision_dim)
        self.fc2 = nn.Linear(4 * vision_dim, hidden_size)
        self.fc3 = nn.Linear(hidden_size, hidden_size)

    def forward(self, features: Tensor) -> Tensor:
        return self.fc3(F.gelu(self.fc2(F.gelu(self.fc1(features)))))


class ProprioProjector(nn.Module):
    """OpenVLA-OFT's proprioception projector (arXiv:2502.19645): (N, proprio_dim) -> (N, hidden_size), one token."""

    def __init__(self, proprio_dim: int, hidden_size: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(proprio_dim, hidden_size)
        self.fc2 = nn.Linear(hidden_size, hidden_size)

    def forward(self, proprio: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(proprio)))
