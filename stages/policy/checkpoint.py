"""Checkpoint folders, as transformers and peft read them.

A base folder holds config.json, model.safetensors (or shards and an index), the tokenizer's files and
dataset_statistics.json.
An adapter folder holds adapter_config.json and adapter_model.safetensors, and names its base.
"""

import json
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.utils import logging

from stages.errors import ArtifactError, TgrpoError
from stages.params import LoraParams
from stages.policy.config import OpenVLAConfig
from stages.policy.modeling import OpenVLAForActionPrediction

STATISTICS = "dataset_statistics.json"
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"


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


def load_base(path: Path, dtype: torch.dtype) -> tuple[OpenVLAForActionPrediction, PreTrainedTokenizerBase]:
    """Reads a base folder; dataset_statistics.json, where present, replaces config.json's norm_stats.

    Raises:
        ArtifactError: no folder, another kind of model, a broken file, or weights missing, left over or misshapen.
    """
    if not (path / "config.json").is_file():
        raise ArtifactError(
            f"{path} is no checkpoint: it has no config.json and no {ADAPTER_CONFIG}; `tgrpo sft` makes one"
        )
    kind = _read_json(path / "config.json").get("model_type")
    if kind != OpenVLAConfig.model_type:
        raise ArtifactError(
            f"{path}/config.json: model_type is {kind!r}; expected 'openvla'; name an OpenVLA checkpoint"
        )
    try:
        with _quiet():
            config = OpenVLAConfig.from_pretrained(path)
            loaded: Any = OpenVLAForActionPrediction.from_pretrained(
                path,
                config=config,
                dtype=dtype,
                local_files_only=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
            )
            tokenizer = PreTrainedTokenizerFast.from_pretrained(path, local_files_only=True)
    except TgrpoError:
        raise
    except (OSError, SafetensorError, ValueError, TypeError) as error:
        raise ArtifactError(
            f"{path} cannot be read as a checkpoint: {_first_line(error)}; make or copy it again"
        ) from None
    model, report = loaded  # a pair, as output_loading_info asks
    mismatched = [key[0] if isinstance(key, tuple) else key for key in report["mismatched_keys"]]
    _refuse_misfit(path, report["missing_keys"], report["unexpected_keys"], mismatched)
    if (path / STATISTICS).is_file():
        model.config.norm_stats = _read_json(path / STATISTICS)
    return model, tokenizer


def add_lora(model: OpenVLAForActionPrediction, lora: LoraParams, seed: int) -> PeftModel:
    """Wraps the model with a fresh trainable adapter that changes nothing yet (B is zero), A Gaussian as in OpenVLA."""
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=lora.target_modules,
        init_lora_weights="gaussian",
    )
    with torch.random.fork_rng(), _quiet():
        torch.manual_seed(seed)
        return get_peft_model(model, config)


def save_adapter(model: PeftModel, path: Path, base: str) -> None:
    """Writes an adapter folder that names `base`. The same weights give the same bytes."""
    path.mkdir(parents=True, exist_ok=True)
    state = get_peft_model_state_dict(model, save_embedding_layers=False)
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, path / ADAPTER_WEIGHTS, {"format": "pt"})
    config = model.peft_config["default"].to_dict()
    config |= {"base_model_name_or_path": base, "inference_mode": True}
    config = {key: sorted(value) if isinstance(value, set) else value for key, value in config.items()}
    (path / ADAPTER_CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def load_adapter(model: OpenVLAForActionPrediction, path: Path, trainable: bool) -> PeftModel:
    """Puts the adapter of a folder on its base.

    Raises:
        ArtifactError: broken files, or weights missing, left over or of another shape.
    """
    try:
        config = PeftConfig.from_pretrained(str(path))
        state = load_file(path / ADAPTER_WEIGHTS)
    except (OSError, SafetensorError, ValueError, TypeError) as error:
        raise ArtifactError(
            f"{path} cannot be read as an adapter: {_first_line(error)}; make or copy it again"
        ) from None
    config.inference_mode = not trainable
    with torch.random.fork_rng(), _quiet():
        peft_model = get_peft_model(model, config)
    wanted = get_peft_model_state_dict(peft_model, save_embedding_layers=False)
    mismatched = [name for name in wanted.keys() & state.keys() if wanted[name].shape != state[name].shape]
    _refuse_misfit(path, wanted.keys() - state.keys(), state.keys() - wanted.keys(), mismatched)
    set_peft_model_state_dict(peft_model, state)
    return peft_model


def base_of(path: Path) -> Path:
    """The base folder that an adapter names, seen from the adapter's folder or else from the working directory.

    Raises:
        ArtifactError: none is recorded, or none lies there.
    """
    base = _read_json(path / ADAPTER_CONFIG).get("base_model_name_or_path")
    if not base:
        raise ArtifactError(
            f"{path}/{ADAPTER_CONFIG} names no base_model_name_or_path; write its base checkpoint there"
        )
    for candidate in (path / base, Path(base)):
        if candidate.is_dir():
            return candidate
    raise ArtifactError(
        f"{path}: its base checkpoint {base} is not there; run from the folder that holds it, or make it again"
    )


def _refuse_misfit(path: Path, missing: Iterable[str], left_over: Iterable[str], mismatched: Iterable[str]) -> None:
    for what, names in (
        ("lacks weights", missing),
        ("holds weights the model does not have", left_over),
        ("holds weights of another shape", mismatched),
    ):
        first = sorted(names)
        if first:
            more = f" and {len(first) - 3} more" if len(first) > 3 else ""
            raise ArtifactError(
                f"{path} {what}: {', '.join(first[:3])}{more}; its configuration and weights do not belong together"
            )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path} cannot be read: {_first_line(error)}; make or copy the checkpoint again") from None
    if not isinstance(value, dict):
        raise ArtifactError(f"{path} holds no JSON object; make or copy the checkpoint again")
    return value


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0].rstrip(".")


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
