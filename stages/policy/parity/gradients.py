"""The cross-entropy of the action tokens, and its gradient by every parameter."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from stages.policy.modeling import OpenVLAForActionPrediction
from stages.policy.parity.checks import GRADIENT, LOG_PROB, Check, Fixture, close, relative
from stages.policy.parity.language import ACTION_ROWS
from stages.types import ACTION_DIM


def compare_gradients(model: OpenVLAForActionPrediction, fixture: Fixture, pixel_values: Tensor) -> Iterator[Check]:
    """loss, grad_norms and grad/* of the batch of three, the mean over the vocabulary's cross-entropy of 7 tokens each.

    `pixel_values` (3, 6, size, size) are the batch's images. Takes a gradient of every parameter, as large as the model.
    """
    found = fixture.find("b3_input_ids", "loss")
    if not found:
        return
    text = torch.from_numpy(found[0]).to(pixel_values.device)
    trained = [parameter.requires_grad for parameter in model.parameters()]
    model.requires_grad_(True)
    try:
        logits = model(text, pixel_values, logits_to_keep=ACTION_ROWS).logits[:, :-1].float()
        loss = F.cross_entropy(logits.flatten(0, 1), text[:, -ACTION_DIM:].flatten())
        yield close("loss", [(loss.item(), found[1])], LOG_PROB)
        gradients = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True, materialize_grads=True)
    finally:
        for parameter, before in zip(model.parameters(), trained, strict=True):
            parameter.requires_grad_(before)
    by_name = dict(zip((name for name, _ in model.named_parameters()), gradients, strict=True))
    if arrays := fixture.find("grad_names", "grad_norms"):
        ours = [by_name[name].norm().item() if name in by_name else np.nan for name in arrays[0].tolist()]
        yield relative(f"grad_norms ({len(ours)}, relative)", [(ours, arrays[1])], GRADIENT)
    for key in sorted(name for name in fixture.arrays if name.startswith("grad/")):
        want = fixture.arrays[key]
        gradient = by_name.get(key.removeprefix("grad/"))
        largest = np.abs(want).max(initial=0.0) or 1.0
        got = np.full(want.shape, np.inf) if gradient is None else gradient.cpu().numpy()
        yield close(
            key.replace("vision_backbone.", "").replace("language_model.model.", ""),
            [(got / largest, want / largest)],
            GRADIENT,
        )
