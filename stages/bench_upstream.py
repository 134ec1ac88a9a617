"""The plain loop that `tgrpo bench policy` runs beside ours: the same weights, called as OpenVLA's original code calls them.

None of that code is here, and it does not run under current libraries; this stands for it, with what decides its speed.
Observations go one at a time (it takes batches of one). Each frame is compressed, resized, cropped and normalised on its
own, the prompt is tokenised every time, and transformers' `generate` decodes over the whole vocabulary with a cache that
grows. Where the original resizes with TensorFlow this uses Pillow, which is no slower. Learning scores one decision at a
time with logits over the whole vocabulary at every position, as `forward(labels=...)` does.
"""

import io
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from transformers import GenerationConfig, PreTrainedTokenizerBase
from transformers.generation import StoppingCriteria, StoppingCriteriaList

from stages.policy.images import MEAN, STD
from stages.policy.learning import precision
from stages.policy.modeling import OpenVLAForActionPrediction
from stages.policy.normalization import Bounds, suite_stats
from stages.policy.tokenizer import prompt_ids
from stages.stopwatch import Stopwatch, since
from stages.timing import Seconds
from stages.types import ACTION_DIM

_CROP = 0.9**0.5  # of the image's side


class PlainLoop:
    """One observation after the other through a model; it takes what `VLAPolicy` takes."""

    def __init__(
        self,
        model: OpenVLAForActionPrediction,
        tokenizer: PreTrainedTokenizerBase,
        center_crop: bool,
        suite: str | None = None,
    ) -> None:
        self._model, self._tokenizer, self._center_crop = model, tokenizer, center_crop
        self._device = model.device
        config = model.config
        self._size = config.image_size
        self._published = config.image_resize_strategy != "none"
        stats = suite_stats(config.norm_stats, suite)
        self._proprio = Bounds.from_stats(stats["proprio"], config.proprio_dim) if config.proprio_dim else None
        self._watch = Stopwatch(self._device)

    @torch.inference_mode()
    def act(
        self, frames: NDArray[np.uint8], proprio: NDArray[np.float32], instruction: str, temperature: float
    ) -> tuple[NDArray[np.int64], NDArray[np.float32], Mapping[str, Seconds]]:
        """Decides for (N, H, W, 3) frames in turn; 0 is greedy.

        Returns:
            tokens (N, 7), their log-probs (N, 7) in nats, and the seconds of `preprocessing`, `prefill`, `decode` (one
            step of all N) and `act` (everything).
        """
        tokens, log_probs = [], []
        seconds: dict[str, NDArray[np.float64]] = {
            name: np.zeros(2) for name in ("preprocessing", "prefill", "decode", "act")
        }
        for frame, state in zip(frames, proprio, strict=True):
            began = self._watch.now()
            pixel_values = self.preprocess(frame)
            ids = torch.tensor([prompt_ids(self._tokenizer, instruction)])
            prepared = self._watch.now()
            stamps = _Stamps(self._watch)
            out = self._generate(pixel_values, ids, state, temperature, stamps)
            logits = torch.stack(out.logits, dim=1).float() / (temperature or 1.0)
            chosen = F.log_softmax(logits, dim=-1).gather(-1, out.sequences[..., None])
            tokens.append(out.sequences[0].cpu().numpy())
            log_probs.append(chosen[0, :, 0].cpu().numpy())
            first, last = stamps.at[0], stamps.at[-1]
            seconds["preprocessing"] += since(began, prepared)
            seconds["prefill"] += since(prepared, first)
            seconds["decode"] += np.array(since(first, last)) / (ACTION_DIM - 1)
            seconds["act"] += since(began, self._watch.now())
        return np.stack(tokens), np.stack(log_probs), {name: (t[0], t[1]) for name, t in seconds.items()}

    def score(
        self, pixel_values: Tensor, proprio: NDArray[np.float32], instruction: str, tokens: NDArray[np.int64]
    ) -> list[Tensor]:
        """Log-probs (7) over the whole vocabulary of each of N recorded decisions, a forward pass each; differentiable.

        Args:
            pixel_values: (N, 6, size, size) float32, normalised.
        """
        prompt = prompt_ids(self._tokenizer, instruction)
        scores = []
        for pixels, state, decision in zip(pixel_values, proprio, torch.from_numpy(tokens), strict=True):
            ids = torch.tensor([[*prompt, *decision.tolist()]], device=self._device)
            with precision(self._model):
                logits = self._model(ids, pixels[None].to(self._model.dtype), self.state(state[None])).logits
            every = F.log_softmax(logits.float(), dim=-1)
            rows = every[0, -ACTION_DIM - 1 : -1]
            scores.append(rows.gather(-1, ids[0, -ACTION_DIM:, None])[:, 0])
        return scores

    def preprocess(self, frame: NDArray[np.uint8]) -> Tensor:
        """(H, W, 3) uint8 -> (1, 6, size, size) float32 on the CPU."""
        image = Image.fromarray(frame)
        if self._published:
            buffer = io.BytesIO()
            image.save(buffer, "JPEG", quality=95)
            image = Image.open(buffer).resize((self._size, self._size), Image.Resampling.LANCZOS)
            if self._center_crop:
                edge = self._size * (1 - _CROP) / 2
                box = (edge, edge, self._size - edge, self._size - edge)
                image = image.resize((self._size, self._size), Image.Resampling.BILINEAR, box=box)
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255.0
        towers = [
            (pixels - torch.tensor(MEAN[rows])[:, None, None]) / torch.tensor(STD[rows])[:, None, None]
            for rows in (slice(0, 3), slice(3, 6))
        ]
        return torch.cat(towers)[None]

    def _generate(
        self, pixel_values: Tensor, ids: Tensor, state: NDArray[np.float32], temperature: float, stamps: "_Stamps"
    ) -> Any:
        model = self._model
        embeds = model.embed(pixel_values.to(self._device, model.dtype), ids.to(self._device), self.state(state[None]))
        sampling: dict[str, Any] = (
            {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
            if temperature
            else {"do_sample": False}
        )
        config = GenerationConfig(
            min_new_tokens=ACTION_DIM,  # an untrained model may choose to end
            max_new_tokens=ACTION_DIM,
            pad_token_id=model.config.pad_token_id,
            output_logits=True,
            return_dict_in_generate=True,
            **sampling,
        )
        return model.language_model.generate(  # type: ignore[misc]  # of the library's own mixin
            inputs_embeds=embeds,
            attention_mask=torch.ones(embeds.shape[:2], dtype=torch.int64, device=self._device),
            generation_config=config,
            stopping_criteria=StoppingCriteriaList([stamps]),
        )

    def state(self, proprio: NDArray[np.float32]) -> Tensor | None:
        """(N, 8) proprioception -> (N, 8) in [-1, 1] on the device, or None for a model without a token for it."""
        if self._proprio is None:
            return None
        return torch.as_tensor(self._proprio.normalize(proprio), dtype=self._model.dtype, device=self._device)


class _Stamps(StoppingCriteria):
    """The moments at which tokens were there; it stops nothing."""

    def __init__(self, watch: Stopwatch) -> None:
        self._watch = watch
        self.at: list[Seconds] = []

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        self.at.append(self._watch.now())
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
