"""Checkpoint folders, as transformers and peft read them.

A base folder holds config.json, model.safetensors (or shards and an index), the tokenizer's files and
dataset_statistics.json.
An adapter folder holds adapter_config.json and adapter_model.safetensors, and names its base.
"""

import json
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

from stages.errors import ArtifactError, ParamsError
from stages.params import LoraParams
from stages.policy import hub
from stages.policy.layout import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    STATISTICS,
    one_line,
    read_config,
    read_json,
    read_tokenizer,
)
from stages.policy.loading import Dtype, load_model
from stages.policy.modeling import OpenVLAForActionPrediction
from stages.policy.weights import refuse_misfit

_CPU = torch.device("cpu")


def is_adapter(path: Path) -> bool:
    """Whether a folder holds an adapter rather than a whole model."""
    return (path / ADAPTER_CONFIG).is_file()


def save_base(model: OpenVLAForActionPrediction, tokenizer: PreTrainedTokenizerBase, path: Path) -> None:
    """Writes a base folder. The same weights give the same bytes."""
    with _quiet():
        model.save_pretrained(path)
    for how_it_was_loaded in ("is_local", "local_files_only"):  # transformers would write these down
        tokenizer.init_kwargs.pop(how_it_was_loaded, None)
    tokenizer.save_pretrained(path)
    (path / STATISTICS).write_text(json.dumps(model.config.norm_stats, indent=2, sort_keys=True) + "\n")


def load_base(
    path: Path, dtype: Dtype, device: torch.device = _CPU
) -> tuple[OpenVLAForActionPrediction, PreTrainedTokenizerBase]:
    """Reads a base folder: its model on `device` in `dtype` ("auto": as stored), and its tokenizer.

    Raises:
        ArtifactError: not a whole checkpoint of an OpenVLA model; see `read_config`, `read_tokenizer` and `load_model`.
    """
    with _quiet():
        config, tokenizer = read_config(path), read_tokenizer(path)
        return load_model(path, config, dtype, device), tokenizer


def compute_dtype(name: str, device: torch.device) -> Dtype:
    """What `policy.dtype` means on a device: `auto` is float32 on a CPU, where bfloat16 is slow, and as stored elsewhere."""
    if name == "auto":
        return torch.float32 if device.type == "cpu" else "auto"
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]


def add_lora(model: OpenVLAForActionPrediction, lora: LoraParams, seed: int) -> PeftModel:
    """Wraps the model with a fresh trainable adapter that changes nothing yet (B is zero), A Gaussian as in OpenVLA.

    Raises:
        ParamsError: target modules that name no layer, or layers that take no adapter.
    """
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=lora.target_modules,
        init_lora_weights="gaussian",
    )
    with torch.random.fork_rng(), _quiet():
        torch.manual_seed(seed)
        try:
            return get_peft_model(model, config)
        except (ValueError, re.error) as error:
            raise ParamsError(
                f"policy.lora.target_modules = {lora.target_modules!r}: {one_line(error).split('. ')[0]}; expected all-linear, "
                "a list of layers' names such as [q_proj, v_proj], or a regular expression for whole names"
            ) from None


def save_adapter(model: PeftModel, path: Path, base: str) -> None:
    """Writes an adapter folder that names `base`, a path or owner/name@revision. The same weights give the same bytes."""
    path.mkdir(parents=True, exist_ok=True)
    state = get_peft_model_state_dict(model, save_embedding_layers=False)
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, path / ADAPTER_WEIGHTS, {"format": "pt"})
    config = model.peft_config["default"].to_dict()
    model_of_hub = hub.parse(base)
    config |= {"base_model_name_or_path": model_of_hub.repo if model_of_hub else base, "inference_mode": True}
    config |= {"revision": model_of_hub.revision} if model_of_hub else {}
    config = {key: sorted(value) if isinstance(value, set) else value for key, value in config.items()}
    (path / ADAPTER_CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def load_adapter(model: OpenVLAForActionPrediction, path: Path, trainable: bool) -> PeftModel:
    """Puts the adapter of a folder on its base.

    Raises:
        ArtifactError: broken files, or weights missing, left over, of another shape, NaN or infinite.
    """
    try:
        config = PeftConfig.from_pretrained(str(path))
        state = load_file(path / ADAPTER_WEIGHTS)
    except (OSError, SafetensorError, ValueError, TypeError) as error:
        raise ArtifactError(f"{path} cannot be read as an adapter: {one_line(error)}; make or copy it again") from None
    config.inference_mode = not trainable
    with torch.random.fork_rng(), _quiet():
        peft_model = get_peft_model(model, config)
    wanted = get_peft_model_state_dict(peft_model, save_embedding_layers=False)
    mismatched = [name for name in wanted.keys() & state.keys() if wanted[name].shape != state[name].shape]
    refuse_misfit(path, wanted.keys() - state.keys(), state.keys() - wanted.keys(), mismatched)
    broken = [name for name in sorted(state) if not torch.isfinite(state[name]).all()]
    if broken:
        raise ArtifactError(f"{path}: {broken[0]} holds NaN or infinite values; make or copy the adapter again")
    set_peft_model_state_dict(peft_model, state)
    return peft_model


def base_of(path: Path) -> Path:
    """The base folder that an adapter names: seen from the adapter's folder, or from the working directory, or on the hub.

    Raises:
        ArtifactError: none is recorded, or none lies there.
    """
    config = read_json(path / ADAPTER_CONFIG)
    base = config.get("base_model_name_or_path")
    if not base:
        raise ArtifactError(
            f"{path}/{ADAPTER_CONFIG} names no base_model_name_or_path; write its base checkpoint there"
        )
    for candidate in (path / base, Path(base)):
        if candidate.is_dir():
            return candidate
    if model := hub.parse(f"{base}@{config['revision']}" if config.get("revision") else base):
        return hub.fetch(model)
    raise ArtifactError(
        f"{path}: its base checkpoint {base} is not there; run from the folder that holds it, or make it again"
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Without progress bars, load reports and warnings between the libraries: what is wrong is raised as an error."""
    verbosity, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bar:
            logging.enable_progress_bar()
