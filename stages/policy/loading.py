"""From a checkpoint folder to a model on its device, one tensor at a time.

The model is built without memory; each weight is read, moved, cast and put in its place before the next is read. So loading
holds the model and one tensor, whatever the device and dtype.
"""

from pathlib import Path
from typing import Literal

import torch
from torch import nn
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from stages.errors import ArtifactError
from stages.policy.config import OpenVLAConfig
from stages.policy.modeling import OpenVLAForActionPrediction
from stages.policy.weights import StoredWeights, refuse_misfit

Dtype = torch.dtype | Literal["auto"]  # auto: as stored


def load_model(path: Path, config: OpenVLAConfig, dtype: Dtype, device: torch.device) -> OpenVLAForActionPrediction:
    """The model of a base folder with its configuration, in evaluation mode; all parameters take gradients.

    Raises:
        ArtifactError: broken weight files, or weights missing, left over, misshapen, NaN or infinite.
    """
    weights = StoredWeights(path)
    target = weights.dtype if dtype == "auto" else dtype
    with torch.device("meta"):
        model = OpenVLAForActionPrediction(config)
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    refuse_misfit(
        path,
        shapes.keys() - weights.tensors.keys(),
        weights.tensors.keys() - shapes.keys(),
        [name for name in shapes.keys() & weights.tensors.keys() if shapes[name] != weights.tensors[name].shape],
    )
    for name in weights.in_file_order():
        tensor = weights.read(name).to(device).to(target)
        if not all(torch.isfinite(bound) for bound in torch.aminmax(tensor)):
            raise ArtifactError(f"{path}: {name} holds NaN or infinite values; make or copy the checkpoint again")
        module, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(module), leaf, nn.Parameter(tensor))
    # The only tensors that no checkpoint stores, because they follow from the configuration.
    model.language_model.model.rotary_emb = LlamaRotaryEmbedding(config.llama).to(device)
    config.dtype = target
    return model.eval()
