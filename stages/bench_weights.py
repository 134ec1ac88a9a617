"""A policy of seeded random weights for `tgrpo bench policy`: an architecture without its checkpoint."""

from typing import Any, Literal

import torch
from tokenizers import Regex, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from stages.arithmetic import Arithmetic
from stages.errors import TgrpoError
from stages.estimate import memory, size
from stages.params import Params
from stages.policy.checkpoint import compute_dtype
from stages.policy.config import OpenVLAConfig, tiny_config
from stages.policy.devices import resolve_device
from stages.policy.learning import checkpoint_activations
from stages.policy.memory import free_bytes
from stages.policy.modeling import OpenVLAForActionPrediction
from stages.policy.policy import VLAPolicy
from stages.policy.tokenizer import LLAMA_EMPTY_PIECE, prompt, tiny_tokenizer
from stages.sim.memory import available_bytes
from stages.types import ACTION_DIM

Architecture = Literal["openvla-tiny", "openvla-7b"]
INSTRUCTION = "pick up the butter and place it in the basket"
_WORD = r"\n|\w+|[^\s\w]"
_LLAMA_EMPTY_ID = 29871
_SEED = 0


def random_policy(architecture: Architecture, params: Params, batch: int) -> VLAPolicy:
    """Random weights made on the device that they are used on, in the dtype that they are used in.

    openvla-tiny has the sizes of `sft.architecture`. openvla-7b has a tokenizer of one id a word, so that its prompt has
    about as many tokens as Llama's own gives.

    Args:
        batch: observations to act on, and decisions to learn from, at once.

    Raises:
        ParamsError: a device that is not there.
        TgrpoError: too little memory.
    """
    device = resolve_device(params.policy.device)
    dtype: Any = torch.bfloat16 if architecture == "openvla-7b" else torch.float32  # as the checkpoints are stored
    computed_in = compute_dtype(params.policy.dtype, device)
    dtype = dtype if computed_in == "auto" else computed_in
    stats = _stats()
    tokenizer: PreTrainedTokenizerBase
    if architecture == "openvla-7b":
        config = OpenVLAConfig(norm_stats=stats)
        tokenizer = word_tokenizer(config.vocab_size_unpadded)
    else:
        config = tiny_config(params.sft.architecture, params.sim.image_size, stats)
        tokenizer = tiny_tokenizer(config.vocab_size_unpadded, config.n_action_bins)
    _refuse_small_memory(architecture, config, params, batch, device, dtype)
    model = random_model(config, device, dtype)
    if params.policy.gradient_checkpointing:
        checkpoint_activations(model)
    return VLAPolicy(model, tokenizer, device, center_crop=params.policy.center_crop, sampling=params.policy.sampling)


def random_model(config: OpenVLAConfig, device: torch.device, dtype: torch.dtype) -> OpenVLAForActionPrediction:
    """Weights as training from scratch would start, each made where it stays; the same seed gives the same ones."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.random.fork_rng(), device:
            torch.manual_seed(_SEED)
            return OpenVLAForActionPrediction(config)
    finally:
        torch.set_default_dtype(default)


def word_tokenizer(vocab_size: int) -> PreTrainedTokenizerFast:
    """One id a word of the bench's prompt, BOS first, and Llama's empty piece where Llama has it."""
    backend = Tokenizer(WordLevel({}, unk_token="<unk>"))
    backend.pre_tokenizer = Split(Regex(_WORD), behavior="removed", invert=True)
    words = [word for word, _ in backend.pre_tokenizer.pre_tokenize_str(prompt(INSTRUCTION))]
    pieces = dict.fromkeys(["<unk>", "<s>", "</s>", *words])
    vocab = {piece: index for index, piece in enumerate(pieces)} | {
        LLAMA_EMPTY_PIECE: _LLAMA_EMPTY_ID,
        "<PAD>": vocab_size,
    }
    backend.model = WordLevel(vocab, unk_token="<unk>")
    backend.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", vocab["<s>"])])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<PAD>"
    )


def _stats() -> dict[str, Any]:
    action = {"q01": [-1.0] * ACTION_DIM, "q99": [1.0] * ACTION_DIM, "mask": [True] * (ACTION_DIM - 1) + [False]}
    return {"random": {"action": action, "proprio": {"q01": [-1.0] * 8, "q99": [1.0] * 8}}}


def _refuse_small_memory(
    architecture: str, config: OpenVLAConfig, params: Params, batch: int, device: torch.device, dtype: torch.dtype
) -> None:
    envs = params.model_copy(
        update={
            "rollout": params.rollout.model_copy(update={"envs": batch}),
            "eval": params.eval.model_copy(update={"envs": batch}),
        }
    )
    folds = device.type == "cpu" and dtype == torch.float32
    needed = memory(Arithmetic(config, 26), envs, dtype.itemsize, batch, folds).total
    free = available_bytes() if device.type == "cpu" else free_bytes(device)
    if needed > free:
        raise TgrpoError(
            f"{architecture} takes about {size(needed)} on {device} in {str(dtype).removeprefix('torch.')} for a batch of "
            f"{batch}, where {size(free)} are free; choose another policy.device, a smaller --batch, or --config openvla-tiny"
        )
