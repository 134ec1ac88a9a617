"""OpenVLA: image patches (and proprioception) as a prefix to Llama, which writes an action as seven tokens.

Written on transformers' own Llama. Parameter names are those of the published checkpoints:
`vision_backbone.featurizer.*`, `vision_backbone.fused_featurizer.*`, `projector.*`, `language_model.*`.
"""

import torch
from torch import Tensor, nn
from transformers import initialization as init
from transformers.cache_utils import Cache
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.modeling_utils import PreTrainedModel
from transformers.models.llama.modeling_llama import LlamaForCausalLM

from stages.policy.config import OpenVLAConfig
from stages.policy.projector import FusedProjector, ProprioProjector
from stages.policy.vision import FusedVisionBackbone, VisionTower


class OpenVLAForActionPrediction(PreTrainedModel):
    """Vision backbone -> projector -> Llama. The sequence is BOS, image patches, [proprioception], rest of the text."""

    config_class = OpenVLAConfig
    config: OpenVLAConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _no_split_modules = ["LlamaDecoderLayer", "Block"]  # noqa: RUF012 (an instance variable of transformers)

    def __init__(self, config: OpenVLAConfig) -> None:
        super().__init__(config)
        hidden_size = config.llama.hidden_size
        self.vision_backbone = FusedVisionBackbone(config)
        self.projector = FusedProjector(self.vision_backbone.embed_dim, hidden_size)
        self.proprio_projector = ProprioProjector(config.proprio_dim, hidden_size) if config.proprio_dim else None
        self.language_model = LlamaForCausalLM(config.llama)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, nn.Linear | nn.Conv2d):
            # By fan-in: the library's fixed deviation would all but silence small layers, such as that of proprioception.
            init.normal_(module.weight, std=module.weight[0].numel() ** -0.5)
        elif isinstance(module, VisionTower):
            for parameter in (module.cls_token, module.reg_token, module.pos_embed):
                if parameter is not None:
                    init.normal_(parameter, std=0.02)

    def enable_input_require_grads(self) -> None:
        """Nothing. peft asks for it beside checkpointed activations; without reentrance they need no input with a gradient."""

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.get_input_embeddings()

    def get_output_embeddings(self) -> nn.Module:
        return self.language_model.get_output_embeddings()

    def embed(self, pixel_values: Tensor, input_ids: Tensor, proprio: Tensor | None = None) -> Tensor:
        """The multimodal sequence in embedding space.

        Args:
            pixel_values: (N, 6, size, size) the normalised image, once for each tower.
            input_ids: (N, P) or (1, P) text from BOS on, followed by any action tokens; one row serves all images.
            proprio: (N, proprio_dim) in [-1, 1]; required when the configuration has a proprioception token.

        Returns:
            (N, P + patches + [1], hidden_size)
        """
        text = self.get_input_embeddings()(input_ids).expand(len(pixel_values), -1, -1)
        image = self.projector(self.vision_backbone(pixel_values))
        middle = [image]
        if self.proprio_projector is not None:
            if proprio is None:
                raise ValueError("this model has a proprioception token: pass proprio")
            middle.append(self.proprio_projector(proprio).unsqueeze(1))
        return torch.cat([text[:, :1], *middle, text[:, 1:]], dim=1)

    def forward(
        self,
        input_ids: Tensor,
        pixel_values: Tensor,
        proprio: Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool = False,
        logits_to_keep: int = 0,
    ) -> CausalLMOutputWithPast:
        """Logits over the vocabulary, (N, sequence, vocab_size), of all positions or the last `logits_to_keep`."""
        return self.language_model(
            inputs_embeds=self.embed(pixel_values, input_ids, proprio),
            past_key_values=past_key_values,
            use_cache=use_cache,
            logits_to_keep=logits_to_keep,
        )

    def hidden_states(self, inputs_embeds: Tensor, past_key_values: Cache | None = None) -> Tensor:
        """Llama's last hidden states, (N, sequence, hidden_size), of a causal sequence without padding."""
        output = self.language_model.model(
            inputs_embeds=inputs_embeds, past_key_values=past_key_values, use_cache=past_key_values is not None
        )
        return output.last_hidden_state

    @property
    def action_ids(self) -> range:
        """The ids of the action tokens: the last below the vocabulary's padding."""
        last = self.config.vocab_size_unpadded
        return range(last - self.config.n_action_bins, last)
