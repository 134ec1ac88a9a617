"""The model's configuration: OpenVLA's published fields, and the few that make a tiny model of the same classes."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

from transformers.configuration_utils import PreTrainedConfig, SubConfigSpec
from transformers.models.llama.configuration_llama import LlamaConfig

from stages.errors import ArtifactError, ParamsError
from stages.params import ArchitectureParams, VisionTowerParams
from stages.types import PROPRIO_DIM

# openvla-tiny's vocabulary: text ids, then 256 action ids up to TINY_VOCAB_SIZE, then the padding token and dead rows.
TINY_VOCAB_SIZE = 400
TINY_PAD_TO_MULTIPLE_OF = 8


@dataclass(frozen=True)
class VisionTowerConfig:
    """The sizes of one ViT. Field names follow timm, whose models the published weights come from."""

    embed_dim: int
    depth: int  # blocks as published; the features are those of the second-to-last
    num_heads: int
    mlp_hidden: int
    patch_size: int
    class_token: bool
    num_reg_tokens: int
    layer_scale: bool
    attention_pool: bool
    norm_eps: float = 1e-6

    @property
    def num_prefix_tokens(self) -> int:
        """Tokens before the patches: class, then registers."""
        return int(self.class_token) + self.num_reg_tokens


PUBLISHED_TOWERS = {
    "vit_large_patch14_reg4_dinov2.lvd142m": VisionTowerConfig(1024, 24, 16, 4096, 14, True, 4, True, False),
    "vit_so400m_patch14_siglip_224": VisionTowerConfig(1152, 27, 16, 4304, 14, False, 0, False, True),
}


class OpenVLAConfig(PreTrainedConfig):
    """OpenVLA's configuration (arXiv:2406.09246), with the field names and defaults of its published checkpoints.

    Five fields are this project's own; their defaults give the published model:

    - `vision_overrides`: for each tower, the `VisionTowerConfig` fields that differ from what its timm name implies.
    - `vision_stem`: `patch`, the linear patch embedding, or `conv`, a small convolutional stack in its place.
    - `vision_tail`: keep what each tower's features never pass through (the last block, the final norm, the attention
      pool), as the published weights do.
    - `proprio_dim`: entries of the proprioception vector that becomes one token after the image patches, as in
      OpenVLA-OFT (arXiv:2502.19645); 0 for none.
    - `image_normalization`: {"mean", "std"}, each 2 towers x 3 channels, of pixels in [0, 1], as the checkpoint's
      preprocessor_config.json has them; None takes those of the published checkpoints.
    """

    model_type = "openvla"
    sub_configs_defaults: ClassVar = {"text_config": SubConfigSpec(config_class=LlamaConfig)}

    vision_backbone_id: str = "dinosiglip-vit-so-224px"
    timm_model_ids: list[str] | None = None
    timm_override_act_layers: list[str | None] | None = None
    use_fused_vision_backbone: bool = True
    image_sizes: list[int] | None = None
    image_resize_strategy: str = "resize-naive"
    arch_specifier: str = "no-align+fused-gelu-mlp"
    llm_backbone_id: str = "llama2-7b-pure"
    hf_llm_id: str = "meta-llama/Llama-2-7b-hf"
    llm_max_length: int = 2048
    text_config: dict[str, Any] | PreTrainedConfig | None = None
    pad_token_id: int | None = 32000
    pad_to_multiple_of: int = 64
    output_projector_states: bool = False
    norm_stats: dict[str, Any] | None = None
    n_action_bins: int = 256
    vision_overrides: list[dict[str, Any]] | None = None
    vision_stem: str = "patch"
    vision_tail: bool = True
    proprio_dim: int = 0
    image_normalization: dict[str, list[list[float]]] | None = None
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        if self.timm_model_ids is None:
            self.timm_model_ids = list(PUBLISHED_TOWERS)
        if self.image_sizes is None:
            self.image_sizes = [224, 224]
        if self.text_config is None:
            self.text_config = LlamaConfig(vocab_size=32064, pad_token_id=32000)
        elif isinstance(self.text_config, dict):
            self.text_config = LlamaConfig(**self.text_config)
        super().__post_init__(**kwargs)

    @property
    def llama(self) -> LlamaConfig:
        """The language model's own configuration."""
        assert isinstance(self.text_config, LlamaConfig)
        return self.text_config

    @property
    def image_size(self) -> int:
        """Side of the square image that enters both towers, in pixels."""
        assert self.image_sizes is not None
        return self.image_sizes[0]

    @property
    def vocab_size_unpadded(self) -> int:
        """V, the size of the tokenizer's vocabulary: the action tokens are the last `n_action_bins` ids below it."""
        return self.llama.vocab_size - self.pad_to_multiple_of

    @property
    def towers(self) -> list[VisionTowerConfig]:
        """The sizes of the two towers, DINOv2 then SigLIP.

        Raises:
            ArtifactError: a vision backbone other than the fused pair of OpenVLA-7B.
        """
        if not self.use_fused_vision_backbone or self.timm_model_ids != list(PUBLISHED_TOWERS):
            raise ArtifactError(
                f"config.json: vision backbone {self.vision_backbone_id} of {self.timm_model_ids}; expected the fused "
                f"pair {list(PUBLISHED_TOWERS)}; name a checkpoint with the dinosiglip-vit-so-224px backbone"
            )
        overrides = self.vision_overrides or [{}, {}]
        return [replace(tower, **o) for tower, o in zip(PUBLISHED_TOWERS.values(), overrides, strict=True)]


def tiny_config(arch: ArchitectureParams, image_size: int, norm_stats: dict[str, Any]) -> OpenVLAConfig:
    """The configuration of `openvla-tiny`: OpenVLA's classes at the sizes of params.yaml.

    Raises:
        ParamsError: sizes that do not fit together.
    """
    where = "sft.architecture"
    if image_size % arch.patch_size:
        raise ParamsError(f"{where}.patch_size = {arch.patch_size}: does not divide sim.image_size = {image_size}")
    if arch.stem == "conv" and (arch.patch_size < 4 or arch.patch_size & (arch.patch_size - 1)):
        raise ParamsError(f"{where}.patch_size = {arch.patch_size}: the conv stem expects a power of two of at least 4")
    for name, width, heads in (
        ("dinov2", arch.dinov2.width, arch.dinov2.heads),
        ("siglip", arch.siglip.width, arch.siglip.heads),
        ("hidden_size", arch.hidden_size, 2 * arch.heads),  # rotary embeddings need an even width per head
    ):
        if width % heads:
            raise ParamsError(
                f"{where}.{name}: width {width} cannot be split evenly over its heads; make it a multiple of {heads}"
            )
    for name, tower in (("dinov2", arch.dinov2), ("siglip", arch.siglip)):
        if tower.depth < 2:
            raise ParamsError(
                f"{where}.{name}.depth = 1: features come from the second-to-last block; expected at least 2"
            )
    return OpenVLAConfig(
        image_sizes=[image_size, image_size],
        image_resize_strategy="none",
        llm_backbone_id="llama-tiny",
        hf_llm_id="",
        llm_max_length=512,
        text_config=LlamaConfig(
            vocab_size=TINY_VOCAB_SIZE + TINY_PAD_TO_MULTIPLE_OF,
            hidden_size=arch.hidden_size,
            intermediate_size=arch.intermediate_size,
            num_hidden_layers=arch.layers,
            num_attention_heads=arch.heads,
            max_position_embeddings=512,
            pad_token_id=TINY_VOCAB_SIZE,
            dtype="float32",
            initializer_range=arch.hidden_size**-0.5,  # 0.02 suits widths of thousands; here attention would start flat
        ),
        pad_token_id=TINY_VOCAB_SIZE,
        pad_to_multiple_of=TINY_PAD_TO_MULTIPLE_OF,
        norm_stats=norm_stats,
        vision_overrides=[
            _tower_overrides(arch.dinov2, arch.patch_size),
            _tower_overrides(arch.siglip, arch.patch_size),
        ],
        vision_stem=arch.stem,
        vision_tail=False,
        proprio_dim=PROPRIO_DIM if arch.proprio else 0,
    )


def _tower_overrides(tower: VisionTowerParams, patch_size: int) -> dict[str, Any]:
    return {
        "embed_dim": tower.width,
        "depth": tower.depth,
        "num_heads": tower.heads,
        "mlp_hidden": 4 * tower.width,
        "patch_size": patch_size,
    }
