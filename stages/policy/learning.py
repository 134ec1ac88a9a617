"""How the model computes while it learns: in which precision, and which activations it keeps."""

from contextlib import AbstractContextManager, nullcontext
from functools import partial

import torch
from torch.utils.checkpoint import checkpoint

from stages.policy.modeling import OpenVLAForActionPrediction


def checkpoint_activations(model: OpenVLAForActionPrediction) -> None:
    """Keeps one activation a block, of Llama and of both vision towers, and computes the others again going backward.

    In training mode only. A tower that no gradient reaches keeps none, because nothing asks for its inputs' gradients
    here, as `activation_checkpointing_enable` would.
    """
    model._set_gradient_checkpointing(True, partial(checkpoint, use_reentrant=False))


def precision(model: OpenVLAForActionPrediction) -> AbstractContextManager:
    """What transformers' and peft's own forward pass runs under, so that float32 adapters meet bfloat16 activations."""
    if model.dtype == torch.float32:
        return nullcontext()
    return torch.autocast(model.device.type, model.dtype)
