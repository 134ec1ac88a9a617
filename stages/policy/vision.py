"""The fused vision backbone: DINOv2 and SigLIP side by side, their patch features joined on channels.

The modules are named as in timm, whose parameter names the published OpenVLA weights carry.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.modeling_layers import GradientCheckpointingLayer

from stages.policy.config import OpenVLAConfig, VisionTowerConfig


class PatchEmbed(nn.Module):
    """(N, 3, size, size) -> (N, patches, width): one linear map per patch, row by row from the top left."""

    def __init__(self, width: int, patch_size: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, kernel_size=patch_size, stride=patch_size)

    def forward(self, image: Tensor) -> Tensor:
        return self.proj(image).flatten(2).transpose(1, 2)


class ConvStem(nn.Module):
    """(N, 3, size, size) -> (N, patches, width): a stride-4 convolution, then stride 2 down to one cell per patch.

    Early convolutions help vision transformers learn (Xiao et al., arXiv:2106.14881). `patch_size` is a power of two.
    """

    def __init__(self, width: int, patch_size: int) -> None:
        super().__init__()
        halvings = patch_size.bit_length() - 3
        channels = [max(16, width >> (halvings - i)) for i in range(halvings)] + [width]
        layers: list[nn.Module] = [nn.Conv2d(3, channels[0], kernel_size=7, stride=4, padding=3)]
        for before, after in pairwise(channels):
            layers += [nn.GELU(), nn.Conv2d(before, after, kernel_size=3, stride=2, padding=1)]
        self.proj = nn.Sequential(*layers)

    def forward(self, image: Tensor) -> Tensor:
        return self.proj(image).flatten(2).transpose(1, 2)


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        n, tokens, width = x.shape
        q, k, v = self.qkv(x).view(n, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, tokens, width))


class Mlp(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class LayerScale(nn.Module):
    """A gain per channel on a residual branch. `scale_factor` is the published name (timm calls it gamma)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale_factor = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale_factor


class Block(GradientCheckpointingLayer):
    """A pre-norm transformer block without dropout."""

    def __init__(self, tower: VisionTowerConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(tower.embed_dim, eps=tower.norm_eps)
        self.attn = Attention(tower.embed_dim, tower.num_heads)
        self.ls1 = LayerScale(tower.embed_dim) if tower.layer_scale else nn.Identity()
        self.norm2 = nn.LayerNorm(tower.embed_dim, eps=tower.norm_eps)
        self.mlp = Mlp(tower.embed_dim, tower.mlp_hidden)
        self.ls2 = LayerScale(tower.embed_dim) if tower.layer_scale else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))


class AttentionPoolWeights(nn.Module):
    """SigLIP's attention pool. OpenVLA never runs it; its weights are kept so that load and save lose none."""

    def __init__(self, tower: VisionTowerConfig) -> None:
        super().__init__()
        width = tower.embed_dim
        self.latent = nn.Parameter(torch.zeros(1, 1, width))
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=tower.norm_eps)
        self.mlp = Mlp(width, tower.mlp_hidden)


class VisionTower(nn.Module):
    """One ViT: (N, 3, size, size) -> (N, patches, width), the second-to-last block's patch tokens, no final norm."""

    def __init__(self, tower: VisionTowerConfig, image_size: int, stem: str, tail: bool) -> None:
        super().__init__()
        width = tower.embed_dim
        self.num_prefix_tokens = tower.num_prefix_tokens
        self.feature_blocks = tower.depth - 1
        self.patch_embed = (ConvStem if stem == "conv" else PatchEmbed)(width, tower.patch_size)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width)) if tower.class_token else None
        self.reg_token = nn.Parameter(torch.zeros(1, tower.num_reg_tokens, width)) if tower.num_reg_tokens else None
        self.pos_embed = nn.Parameter(torch.zeros(1, (image_size // tower.patch_size) ** 2, width))
        self.blocks = nn.ModuleList(Block(tower) for _ in range(tower.depth if tail else self.feature_blocks))
        if tail:
            self.norm = nn.LayerNorm(width, eps=tower.norm_eps)
            if tower.attention_pool:
                self.attn_pool = AttentionPoolWeights(tower)

    def forward(self, image: Tensor) -> Tensor:
        x = self.patch_embed(image) + self.pos_embed
        prefix = [token.expand(len(x), -1, -1) for token in (self.cls_token, self.reg_token) if token is not None]
        x = torch.cat([*prefix, x], dim=1)
        for block in self.blocks[: self.feature_blocks]:
            x = block(x)
        return x[:, self.num_prefix_tokens :]


class FusedVisionBackbone(nn.Module):
    """(N, 6, size, size) -> (N, patches, channels): channels 0-2 through DINOv2, 3-5 through SigLIP."""

    def __init__(self, config: OpenVLAConfig) -> None:
        super().__init__()
        dinov2, siglip = config.towers
        self.featurizer = VisionTower(dinov2, config.image_size, config.vision_stem, config.vision_tail)
        self.fused_featurizer = VisionTower(siglip, config.image_size, config.vision_stem, config.vision_tail)
        self.embed_dim = dinov2.embed_dim + siglip.embed_dim

    def forward(self, pixel_values: Tensor) -> Tensor:
        capturing = pixel_values.is_cuda and torch.cuda.is_current_stream_capturing()
        if capturing and not torch.is_grad_enabled():
            # Side by side in the graph: at a few images neither tower fills a GPU.
            here, beside = torch.cuda.current_stream(), torch.cuda.Stream()
            beside.wait_stream(here)
            with torch.cuda.stream(beside):
                siglip = self.fused_featurizer(pixel_values[:, 3:])
            dinov2 = self.featurizer(pixel_values[:, :3])
            here.wait_stream(beside)
        else:
            dinov2, siglip = self.featurizer(pixel_values[:, :3]), self.fused_featurizer(pixel_values[:, 3:])
        return torch.cat([dinov2, siglip], dim=-1)
