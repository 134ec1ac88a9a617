"""The differentiable forward pass of learning: hidden states at the positions that predict action tokens, and no others."""

from collections.abc import Sequence

from torch import Tensor, nn

from stages.policy.decoder import Decoder
from stages.policy.linears import LearningLinear, restructured
from stages.policy.modeling import OpenVLAForActionPrediction


class ScoringModel:
    """Computes what the model does, with its present weights and adapter; see `linears` and `decoder` for what it saves."""

    def __init__(self, model: OpenVLAForActionPrediction, fold: bool) -> None:
        """`fold` see `JointLinear`.

        Raises:
            MismatchError: an adapter on the language model that is no plain LoRA.
        """

        self._linears: list[LearningLinear] = []

        def make(parts: Sequence[nn.Module]) -> LearningLinear:
            self._linears.append(LearningLinear(parts, fold))
            return self._linears[-1]

        self._model = model
        self._eyes = restructured(model, make, but=["language_model"])
        self._decoder = Decoder(model.language_model, make)

    def __call__(self, pixel_values: Tensor, input_ids: Tensor, proprio: Tensor | None, keep: int) -> Tensor:
        """(N, keep, hidden_size) last hidden states of the last positions; arguments as `OpenVLAForActionPrediction.embed`."""
        for name, child in self._eyes.named_children():
            if name != "language_model":
                child.train(self._model.training)  # blocks are computed twice in training mode only
        return self._decoder.hidden_states(self._eyes.embed(pixel_values, input_ids, proprio), keep)

    def join_adapters(self) -> None:
        """Takes over the adapters' present weights, in place, where a pass has run already; each pass does so by itself."""
        for linear in self._linears:
            linear.join()
