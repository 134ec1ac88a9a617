"""The files beside a checkpoint's weights, and what they say about the model.

The published layout spreads it over several files, some of which overrule config.json. Nothing in a folder is executed: the
remote code that published configurations name (`auto_map`) is neither looked for nor run.
"""

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from stages.errors import ArtifactError, TgrpoError
from stages.policy.config import OpenVLAConfig, VisionTowerConfig

CONFIG = "config.json"
STATISTICS = "dataset_statistics.json"
PREPROCESSOR = "preprocessor_config.json"
VISION_OVERRIDES = "vision_overrides.json"
TOKENIZER = "tokenizer.json"
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"

_TOWERS = ("featurizer", "fused_featurizer")


def read_config(path: Path) -> OpenVLAConfig:
    """A base folder's configuration, with what its other files say.

    - dataset_statistics.json replaces `norm_stats`;
    - preprocessor_config.json gives `image_normalization`;
    - vision_overrides.json gives the towers' sizes, for checkpoints smaller than their timm names imply.

    Raises:
        ArtifactError: no folder, another kind of model, or a file that does not say what it should.
    """
    if not (path / CONFIG).is_file():
        raise ArtifactError(
            f"{path} is no checkpoint: it has no {CONFIG} and no {ADAPTER_CONFIG}; `tgrpo sft` makes one"
        )
    kind = read_json(path / CONFIG).get("model_type")
    if kind != OpenVLAConfig.model_type:
        raise ArtifactError(f"{path}/{CONFIG}: model_type is {kind!r}; expected 'openvla'; name an OpenVLA checkpoint")
    try:
        config = OpenVLAConfig.from_pretrained(path, local_files_only=True)
    except TgrpoError:
        raise
    except Exception as error:  # the library checks the fields with exceptions of its own kinds
        raise ArtifactError(f"{path}/{CONFIG} cannot be read: {one_line(error)}; make or copy it again") from None
    if (path / STATISTICS).is_file():
        config.norm_stats = read_json(path / STATISTICS)
    if (path / PREPROCESSOR).is_file():
        config.image_normalization = _image_normalization(path / PREPROCESSOR) or config.image_normalization
    if (path / VISION_OVERRIDES).is_file():
        config.vision_overrides = _vision_overrides(path / VISION_OVERRIDES)
    return config


def read_tokenizer(path: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a base folder, from its tokenizer.json.

    Raises:
        ArtifactError: there is none, or a broken one.
    """
    if not (path / TOKENIZER).is_file():
        raise ArtifactError(
            f"{path} has no {TOKENIZER}; expected the one that OpenVLA's checkpoints come with "
            "(a tokenizer.model alone is not enough); copy it from openvla/openvla-7b"
        )
    try:
        return PreTrainedTokenizerFast.from_pretrained(path, local_files_only=True)
    except Exception as error:  # tokenizers raises plain Exception
        raise ArtifactError(f"{path}/{TOKENIZER} cannot be read: {one_line(error)}; make or copy it again") from None


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        ArtifactError: no file, no JSON, or no object.
    """
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path} cannot be read: {one_line(error)}; make or copy the checkpoint again") from None
    if not isinstance(value, dict):
        raise ArtifactError(f"{path} holds no JSON object; make or copy the checkpoint again")
    return value


def one_line(error: Exception) -> str:
    """An exception's message for the middle of one of ours."""
    return str(error).strip().split("\n")[0].rstrip(".")


def _image_normalization(path: Path) -> dict[str, list[list[float]]] | None:
    """Mean and deviation per tower, or None where the file names none.

    The published processor applies `tvf_normalize_params`, and its `means` and `stds` only where these are missing.
    """
    stored = read_json(path)
    try:
        if stored.get("tvf_normalize_params"):
            mean, std = ([tower[key] for tower in stored["tvf_normalize_params"]] for key in ("mean", "std"))
        elif stored.get("means") and stored.get("stds"):
            mean, std = stored["means"], stored["stds"]
        else:
            return None
        found = {
            "mean": [[float(x) for x in tower] for tower in mean],
            "std": [[float(x) for x in tower] for tower in std],
        }
        if any([len(tower) for tower in towers] != [3, 3] for towers in found.values()):
            raise ValueError
        if any(x <= 0 for tower in found["std"] for x in tower):
            raise ValueError
    except (TypeError, ValueError, KeyError):
        raise ArtifactError(
            f"{path}: expected tvf_normalize_params with a mean and a positive std of 3 channels for each of the "
            "2 towers; copy it again"
        ) from None
    return found


def _vision_overrides(path: Path) -> list[dict[str, Any]]:
    stored = read_json(path)
    known = {field.name for field in fields(VisionTowerConfig)}
    if any(not isinstance(stored.get(tower), dict) for tower in _TOWERS):
        raise ArtifactError(f"{path}: expected an object for each of {' and '.join(_TOWERS)}; copy it again")
    return [{name: value for name, value in stored[tower].items() if name in known} for tower in _TOWERS]
