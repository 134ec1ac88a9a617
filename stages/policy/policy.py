"""The policy as the stages use it: act on observations, score recorded tokens, learn, load and save."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from peft import PeftModel
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedTokenizerBase
from transformers.cache_utils import DynamicCache

from stages.errors import MismatchError, ParamsError
from stages.params import ArchitectureParams, LoraParams
from stages.policy import checkpoint
from stages.policy.action_tokens import ActionCodec, ActionTokenizer
from stages.policy.config import OpenVLAConfig, tiny_config
from stages.policy.images import PreparedImages, image_transform
from stages.policy.modeling import OpenVLAForActionPrediction
from stages.policy.normalization import Bounds, suite_stats
from stages.policy.tokenizer import prompt_ids, tiny_tokenizer
from stages.types import ACTION_DIM


@dataclass(frozen=True)
class Acted:
    """One decision for each of N observations."""

    tokens: NDArray[np.int64]  # (N, A) vocabulary ids
    action: NDArray[np.float64]  # (N, A) what the environment gets; gripper -1 open, +1 close
    log_prob: NDArray[np.float32]  # (N, A) of each token at the sampling temperature (greedy: at 1), in nats
    entropy: NDArray[np.float32]  # (N, A) of the 256 action tokens at the same temperature, in nats


@dataclass(frozen=True)
class TokenScores:
    """What the policy thinks of B recorded decisions; differentiable."""

    log_prob: Tensor  # (B, A) of each recorded token, in nats
    entropy: Tensor  # (B, A), in nats
    log_probs_all: Tensor  # (B, A, 256) in the order of the token ids


class VLAPolicy:
    """A vision-language-action model with its tokenizer, image transform and action codec.

    Distributions are over the 256 action tokens only. Log-probs and entropies are float32 whatever the model runs in.
    """

    def __init__(
        self,
        model: OpenVLAForActionPrediction,
        tokenizer: PreTrainedTokenizerBase,
        device: torch.device,
        suite: str | None = None,
        center_crop: bool = True,
    ) -> None:
        """`suite` names the entry of norm_stats to normalise actions and proprioception by; None takes the only one.

        Raises:
            ArtifactError: norm_stats that do not hold it.
        """
        self.model: OpenVLAForActionPrediction = model.eval()
        self.model.to(device)
        self.tokenizer = tokenizer
        self.device = device
        self.config: OpenVLAConfig = model.config
        stats = suite_stats(self.config.norm_stats, suite)
        self._codec = ActionCodec(
            ActionTokenizer(self.config.vocab_size_unpadded, self.config.n_action_bins),
            Bounds.from_stats(stats["action"], ACTION_DIM),
        )
        self._proprio = (
            Bounds.from_stats(stats["proprio"], self.config.proprio_dim) if self.config.proprio_dim else None
        )
        self._transform = image_transform(self.config, center_crop, device)
        self._prompts: dict[str, Tensor] = {}
        self._peft: PeftModel | None = None
        self._adapter_off = False
        self._merged: tuple[list[int], OpenVLAForActionPrediction] | None = None

    @classmethod
    def new(
        cls,
        arch: ArchitectureParams,
        image_size: int,
        norm_stats: dict[str, Any],
        seed: int,
        device: str = "auto",
    ) -> "VLAPolicy":
        """A fresh `openvla-tiny`, all parameters trainable; the same seed gives the same weights.

        Raises:
            ParamsError: sizes that do not fit together, or a device that is not there.
        """
        config = tiny_config(arch, image_size, norm_stats)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = OpenVLAForActionPrediction(config)
        tokenizer = tiny_tokenizer(config.vocab_size_unpadded, config.n_action_bins)
        return cls(model, tokenizer, _device(device))

    @classmethod
    def load(cls, path: Path, device: str = "auto", trainable: bool = False, suite: str | None = None) -> "VLAPolicy":
        """From a base folder (`trainable`: every parameter) or an adapter folder (`trainable`: the adapter).

        Computes in float32 on a CPU, in bfloat16 elsewhere unless the checkpoint itself is stored in float32.

        Raises:
            ArtifactError: a folder that is missing, broken or does not fit together, naming the first weights.
            ParamsError: a device that is not there.
        """
        path, adapter = Path(path), None
        if checkpoint.is_adapter(path):
            path, adapter = checkpoint.base_of(path), path
        target = _device(device)
        dtype: Any = torch.float32 if target.type == "cpu" else "auto"
        model, tokenizer = checkpoint.load_base(path, dtype)
        policy = cls(model, tokenizer, target, suite)
        model.requires_grad_(trainable and adapter is None)
        if adapter is not None:
            policy._peft = checkpoint.load_adapter(model, adapter, trainable)
            policy._peft.to(target)
        model.train(trainable)
        return policy

    def save_base(self, path: Path) -> None:
        """Writes a base folder.

        Raises:
            MismatchError: the policy has an adapter; its weights would be lost.
        """
        if self._peft is not None:
            raise MismatchError("this policy has an adapter, which a base checkpoint cannot hold; save the adapter")
        checkpoint.save_base(self.model, self.tokenizer, path)

    def save_adapter(self, path: Path, base: str) -> None:
        """Writes an adapter folder, readable by `PeftModel.from_pretrained`, that names `base` as its base checkpoint.

        Raises:
            MismatchError: there is no adapter.
        """
        checkpoint.save_adapter(self._require_adapter(), path, base)

    def add_lora(self, lora: LoraParams, seed: int) -> None:
        """Freezes the model and adds a trainable adapter that changes nothing yet; same seed, same adapter.

        Raises:
            MismatchError: there is an adapter already.
        """
        if self._peft is not None:
            raise MismatchError("this policy has an adapter already; start from its base checkpoint to add another")
        self._peft = checkpoint.add_lora(self.model, lora, seed)
        self.model.train()

    @property
    def has_adapter(self) -> bool:
        return self._peft is not None

    def trainable_parameters(self) -> list[tuple[str, torch.nn.Parameter]]:
        """Names and parameters that take gradients, in the model's order."""
        return [(name, parameter) for name, parameter in self.model.named_parameters() if parameter.requires_grad]

    @contextmanager
    def reference(self) -> Iterator[None]:
        """Within it the policy is the reference policy: the base, its adapter switched off.

        Raises:
            MismatchError: there is no adapter.
        """
        trained = [parameter for _, parameter in self.trainable_parameters()]
        adapter = self._require_adapter()
        self._adapter_off = True
        try:
            with adapter.disable_adapter():
                yield
        finally:
            self._adapter_off = False
            # peft leaves every adapter trainable when it switches adapters on again.
            self.model.requires_grad_(False)
            for parameter in trained:
                parameter.requires_grad_(True)

    def prepare(self, images: NDArray[np.uint8] | Tensor) -> PreparedImages:
        """What the towers see of camera frames (N, H, W, 3): the part of the image pipeline that is done once a frame.

        Raises:
            MismatchError: frames of another shape or dtype than the checkpoint's.
        """
        return self._transform.prepare(images)

    def act(
        self,
        images: NDArray[np.uint8] | PreparedImages,
        proprio: NDArray[np.float32],
        instruction: str,
        temperature: float,
        generator: torch.Generator | None = None,
    ) -> Acted:
        """Decides for N observations of one task.

        Args:
            images: (N, H, W, 3) upright agentview frames of the model's size.
            proprio: (N, 8) as the simulator gives it; not read by a model without a proprioception token.
            instruction: the task's language.
            temperature: of sampling; 0 takes the most likely token.
            generator: a CPU generator; the same state gives the same tokens. None draws from torch's global one.
        """
        model = self._acting_model()
        training = model.training
        if training:
            model.eval()
        with torch.inference_mode():
            draws = (
                torch.rand(len(images), ACTION_DIM, dtype=torch.float64, generator=generator) if temperature else None
            )
            cache = DynamicCache(config=self.config.llama)
            embeds = self._embed(model, images, proprio, self._prompt(instruction))
            tokens, log_probs, entropies = [], [], []
            for position in range(ACTION_DIM):
                logits = model.action_logits(model.hidden_states(embeds, cache)[:, -1])
                every = F.log_softmax(logits / (temperature or 1.0), dim=-1)
                index = logits.argmax(-1) if draws is None else _inverse_cdf(every, draws[:, position].to(self.device))
                tokens.append(index + self._codec.tokenizer.first_id)
                log_probs.append(every.gather(-1, index[:, None])[:, 0])
                entropies.append(_entropy(every))
                embeds = model.get_input_embeddings()(tokens[-1])[:, None]
        if training:
            model.train()
        ids = torch.stack(tokens, 1).cpu().numpy()
        return Acted(
            tokens=ids,
            action=self._codec.decode(ids),
            log_prob=torch.stack(log_probs, 1).cpu().numpy(),
            entropy=torch.stack(entropies, 1).cpu().numpy(),
        )

    def log_prob(
        self,
        images: NDArray[np.uint8] | Tensor | PreparedImages,
        proprio: NDArray[np.float32] | Tensor,
        instruction: str,
        tokens: NDArray[np.int64] | Tensor,
        temperature: float = 1.0,
    ) -> TokenScores:
        """Scores B recorded decisions, tokens (B, 7), in one teacher-forced forward pass; differentiable.

        Shapes as in `act`; `temperature` must be the positive one they were sampled at for the log-probs to be theirs.
        """
        tokens = torch.as_tensor(tokens, dtype=torch.int64).to(self.device)
        text = self._prompt(instruction).expand(len(tokens), -1)
        embeds = self._embed(self.model, images, proprio, torch.cat([text, tokens[:, :-1]], dim=1))
        hidden = self.model.hidden_states(embeds)[:, -ACTION_DIM:]
        every = F.log_softmax(self.model.action_logits(hidden) / temperature, dim=-1)
        index = (tokens - self._codec.tokenizer.first_id).unsqueeze(-1)
        return TokenScores(every.gather(-1, index).squeeze(-1), _entropy(every), every)

    def loss(
        self,
        images: NDArray[np.uint8] | Tensor | PreparedImages,
        proprio: NDArray[np.float32] | Tensor,
        instruction: str,
        actions: NDArray[np.float64],
    ) -> Tensor:
        """Behaviour cloning: mean cross-entropy of environment actions (B, 7) over decisions and tokens, in nats."""
        return -self.log_prob(images, proprio, instruction, self.encode_actions(actions)).log_prob.mean()

    def encode_actions(self, actions: NDArray[np.float64]) -> NDArray[np.int64]:
        """Environment actions (..., 7) -> the tokens (..., 7) that decode to them, up to the width of a bin."""
        return self._codec.encode(actions)

    def decode_tokens(self, tokens: NDArray[np.int64]) -> NDArray[np.float64]:
        """Tokens (..., 7) -> environment actions (..., 7)."""
        return self._codec.decode(tokens)

    def _embed(
        self,
        model: OpenVLAForActionPrediction,
        images: NDArray[np.uint8] | Tensor | PreparedImages,
        proprio: NDArray[np.float32] | Tensor,
        input_ids: Tensor,
    ) -> Tensor:
        state = None
        if self._proprio is not None:
            state = torch.as_tensor(self._proprio.normalize(proprio), dtype=model.dtype, device=self.device)
        prepared = images if isinstance(images, PreparedImages) else self.prepare(images)
        pixel_values = self._transform.normalize(prepared.pixels.to(self.device))
        return model.embed(pixel_values.to(model.dtype), input_ids, state)

    def _acting_model(self) -> OpenVLAForActionPrediction:
        """The model that `act` runs.

        In float32 an adapter is merged into a copy, which halves the time of a decision on a CPU; the copy is made
        again when the adapter has changed (torch counts in-place changes). In bfloat16 the sum would be rounded, so
        there the adapter runs beside the base.
        """
        if self._peft is None or self._adapter_off or self.model.dtype != torch.float32:
            return self.model
        version = [parameter._version for name, parameter in self.model.named_parameters() if "lora_" in name]
        if self._merged is None or self._merged[0] != version:
            self._merged = None
            merged = copy.deepcopy(self._peft).merge_and_unload()
            self._merged = version, merged.requires_grad_(False).eval()
        return self._merged[1]

    def _prompt(self, instruction: str) -> Tensor:
        if instruction not in self._prompts:
            self._prompts[instruction] = torch.tensor([prompt_ids(self.tokenizer, instruction)], device=self.device)
        return self._prompts[instruction]

    def _require_adapter(self) -> PeftModel:
        if self._peft is None:
            raise MismatchError(
                "this policy has no adapter, so no reference apart from itself; add one with policy.lora"
            )
        return self._peft


def _entropy(log_probs: Tensor) -> Tensor:
    return -(log_probs.exp() * log_probs).sum(-1)


def _inverse_cdf(log_probs: Tensor, uniform: Tensor) -> Tensor:
    """(N, C) log-probs and (N,) uniform draws -> (N,) sampled columns; a row depends on its own draw only."""
    cumulative = log_probs.double().exp().cumsum(-1)
    target = uniform[:, None] * cumulative[:, -1:]  # the sum is 1 only up to rounding
    return torch.searchsorted(cumulative, target, right=True)[:, 0].clamp(max=log_probs.shape[-1] - 1)


def _device(name: str) -> torch.device:
    """Raises ParamsError for a device that torch does not know or does not see."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ParamsError(f"policy.device = {name!r}: expected auto, cpu, cuda or cuda:N") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ParamsError(
            f"policy.device = {name!r}: torch sees {torch.cuda.device_count()} CUDA devices; set policy.device=auto"
        )
    return device
