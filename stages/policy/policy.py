"""The policy as the stages use it: act on observations, score recorded tokens, learn, load and save."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from peft import PeftModel
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedTokenizerBase

from stages.errors import MismatchError
from stages.params import ArchitectureParams, LoraParams
from stages.policy import checkpoint
from stages.policy.acting import ActingEngine, entropy_of, head_rows
from stages.policy.action_tokens import ActionCodec, ActionTokenizer
from stages.policy.config import OpenVLAConfig, tiny_config
from stages.policy.decoder import join_weights
from stages.policy.devices import resolve_device
from stages.policy.images import ImageTransform, PreparedImages, image_transform
from stages.policy.learning import checkpoint_activations
from stages.policy.modeling import OpenVLAForActionPrediction
from stages.policy.normalization import Bounds, suite_stats
from stages.policy.replaying import MOST, Replays
from stages.policy.scoring import ScoringModel
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
    state: Tensor  # (B, hidden_size) last hidden state before the first action token, which has seen no token; detached


class VLAPolicy:
    """A vision-language-action model with its tokenizer, image transform and action codec.

    Distributions are over the 256 action tokens, or with `sampling: full` over the whole vocabulary as in OpenVLA's own
    code, where a token that is no action decodes to the nearest bin. Log-probs and entropies are float32 whatever the
    model runs in.
    """

    def __init__(
        self,
        model: OpenVLAForActionPrediction,
        tokenizer: PreTrainedTokenizerBase,
        device: torch.device,
        suite: str | None = None,
        center_crop: bool = True,
        sampling: Literal["action", "full"] = "action",
    ) -> None:
        """See `load`.

        Raises:
            ArtifactError: norm_stats that do not hold it.
        """
        self.model: OpenVLAForActionPrediction = model.eval()
        self.model.to(device)
        if device.type == "cuda":
            join_weights(model.language_model)
            torch.cuda.empty_cache()
        self.tokenizer = tokenizer
        self.device = device
        self.config: OpenVLAConfig = model.config
        stats = suite_stats(self.config.norm_stats, suite)
        self.codec = ActionCodec(
            ActionTokenizer(self.config.vocab_size_unpadded, self.config.n_action_bins),
            Bounds.from_stats(stats["action"], ACTION_DIM),
        )
        self._proprio = (
            Bounds.from_stats(stats["proprio"], self.config.proprio_dim) if self.config.proprio_dim else None
        )
        self.transform: ImageTransform = image_transform(self.config, center_crop, device)
        self._prompts: dict[str, Tensor] = {}
        self._peft: PeftModel | None = None
        self._adapter_off = False
        # The vocabulary ids among which tokens are chosen.
        self.token_ids = model.action_ids if sampling == "action" else range(self.config.llama.vocab_size)
        # Both compute with the model's own tensors, and are made anew when modules change.
        self._engine: ActingEngine | None = None
        self._scoring: ScoringModel | None = None
        self._replaying = False
        self._replays: Replays | None = None

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
        return cls(model, tokenizer, resolve_device(device))

    @classmethod
    def load(
        cls,
        path: Path,
        device: str = "auto",
        trainable: bool = False,
        suite: str | None = None,
        *,
        dtype: Literal["auto", "float32", "bfloat16"] = "auto",
        center_crop: bool = True,
        sampling: Literal["action", "full"] = "action",
        gradient_checkpointing: bool = False,
    ) -> "VLAPolicy":
        """From a base folder (`trainable`: every parameter) or an adapter folder (`trainable`: the adapter).

        Args:
            suite: the entry of norm_stats to normalise actions and proprioception by; None takes the only one.
            dtype: what the model computes in; auto is float32 on a CPU and as stored elsewhere.
            center_crop: of the published image pipeline; checkpoints of `tgrpo sft` have none.
            sampling: what tokens are chosen among: the 256 action tokens, or the full vocabulary.
            gradient_checkpointing: while learning, keep one activation a block and compute the others twice.

        Raises:
            ArtifactError: a folder that is missing, broken or does not fit together, naming the first weights; norm_stats
                that lack the suite.
            ParamsError: a device that is not there.
        """
        path, adapter = Path(path), None
        if checkpoint.is_adapter(path):
            path, adapter = checkpoint.base_of(path), path
        target = resolve_device(device)
        computed_in = checkpoint.compute_dtype(dtype, target)
        model, tokenizer = checkpoint.load_base(path, computed_in, target)
        if gradient_checkpointing:
            checkpoint_activations(model)
        policy = cls(model, tokenizer, target, suite, center_crop, sampling)
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
        self._engine = self._scoring = self._replays = None
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
        return self.transform.prepare(images)

    def act(
        self,
        images: NDArray[np.uint8] | PreparedImages,
        proprio: NDArray[np.float32],
        instruction: str,
        temperature: float,
        generator: torch.Generator | None = None,
        uniform: Tensor | None = None,
    ) -> Acted:
        """Decides for N observations of one task.

        Args:
            images: (N, H, W, 3) upright agentview frames of the model's size.
            proprio: (N, 8) as the simulator gives it; not read by a model without a proprioception token.
            instruction: the task's language.
            temperature: of sampling; 0 takes the most likely token.
            generator: a CPU generator; the same state gives the same tokens. None draws from torch's global one.
            uniform: (N, 7) float64 in [0, 1), the draws themselves in place of a generator's, so that every observation can
                have a random stream of its own. Not read at temperature 0.
        """
        if not temperature:
            uniform = None
        elif uniform is None:
            uniform = torch.rand(len(images), ACTION_DIM, dtype=torch.float64, generator=generator)
        decided = self.engine().decide(
            self._prepared(images).pixels,
            self._normalized(proprio),
            self.prompt(instruction),
            uniform,
            temperature or 1.0,
        )
        tokens = decided.tokens.cpu().numpy()
        return Acted(
            tokens=tokens,
            action=self.codec.decode(tokens),
            log_prob=decided.log_prob.cpu().numpy(),
            entropy=decided.entropy.cpu().numpy(),
        )

    def engine(self) -> ActingEngine:
        """What `act` runs, with the adapter's present weights.

        Raises:
            MismatchError: an adapter that is no plain LoRA.
        """
        if self._engine is None:
            self._engine = ActingEngine(self.model, self.transform, self.token_ids, self._fold)
        self._engine.refresh(adapted=not self._adapter_off)
        return self._engine

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

        Raises:
            MismatchError: tokens that are not among `token_ids`, frames of another shape, or an adapter that is no plain LoRA.
        """
        tokens = torch.as_tensor(tokens, dtype=torch.int64)
        first, last = self.token_ids[0], self.token_ids[-1]
        if len(tokens) and not (tokens.min() >= first and tokens.max() <= last):
            raise MismatchError(
                f"tokens reach from {tokens.min()} to {tokens.max()}; expected {first} to {last}: these were sampled by "
                "another policy, or with another policy.sampling"
            )
        index = tokens - first
        tokens, index = tokens.to(self.device), index.to(self.device)
        text = self.prompt(instruction).expand(len(tokens), -1)
        state = self._normalized(proprio)
        pixel_values = self.transform.normalize(self._prepared(images).pixels.to(self.device)).to(self.model.dtype)
        ids = torch.cat([text, tokens[:, :-1]], dim=1)
        hidden = self._hidden_states(pixel_values, ids, None if state is None else state.to(self.device))
        # In float32: near 10, logits in bfloat16 are 1/16 apart.
        logits = F.linear(hidden.float(), head_rows(self.model.language_model.lm_head, self.token_ids).float())
        every = F.log_softmax(logits / temperature, dim=-1)
        log_prob = every.gather(-1, index.unsqueeze(-1)).squeeze(-1)
        return TokenScores(log_prob, entropy_of(every), every, hidden[:, 0].detach())

    def _hidden_states(self, pixel_values: Tensor, ids: Tensor, state: Tensor | None) -> Tensor:
        """(B, 7, hidden_size) at the positions that predict the action tokens."""
        if self._scoring is None:
            self._scoring = ScoringModel(self.model, self._fold)
        if self._replaying and torch.is_grad_enabled() and not self._adapter_off and 0 < len(ids) <= MOST:
            if self._replays is None:
                self._replays = Replays(self._scoring, [parameter for _, parameter in self.trainable_parameters()])
            try:
                return self._replays(pixel_values, ids, state, keep=ACTION_DIM)
            except torch.OutOfMemoryError:
                self.replay_learning(False)
        return self._scoring(pixel_values, ids, state, keep=ACTION_DIM)

    def replay_learning(self, on: bool) -> None:
        """Whether small differentiable passes of `log_prob` are captured as CUDA graphs and replayed; off frees these.

        On has an effect on a GPU alone, for an adapter whose activations are kept (no gradient checkpointing). From then on
        the adapter's weights must change in place, as optimisers change them.
        """
        checkpoints = self.model.language_model.model.layers[0].gradient_checkpointing
        self._replaying = on and self.device.type == "cuda" and self._peft is not None and not checkpoints
        if not self._replaying:
            self._replays = None

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
        return self.codec.encode(actions)

    def decode_tokens(self, tokens: NDArray[np.int64]) -> NDArray[np.float64]:
        """Tokens (..., 7) -> environment actions (..., 7)."""
        return self.codec.decode(tokens)

    @property
    def _fold(self) -> bool:
        """Whether adapters are folded into the weights; see `JointLinear`."""
        return self.model.dtype == torch.float32 and self.device.type == "cpu"

    def _prepared(self, images: NDArray[np.uint8] | Tensor | PreparedImages) -> PreparedImages:
        return images if isinstance(images, PreparedImages) else self.prepare(images)

    def _normalized(self, proprio: NDArray[np.float32] | Tensor) -> Tensor | None:
        """Proprioception in [-1, 1], or None for a model that has no token for it."""
        if self._proprio is None:
            return None
        return torch.as_tensor(self._proprio.normalize(proprio), dtype=self.model.dtype)

    def prompt(self, instruction: str) -> Tensor:
        """Ids (1, P) of OpenVLA's prompt for an instruction, BOS first."""
        if instruction not in self._prompts:
            self._prompts[instruction] = torch.tensor([prompt_ids(self.tokenizer, instruction)], device=self.device)
        return self._prompts[instruction]

    def _require_adapter(self) -> PeftModel:
        if self._peft is None:
            raise MismatchError(
                "this policy has no adapter, so no reference apart from itself; add one with policy.lora"
            )
        return self._peft
