"""A small checkpoint in the published layout, with random weights."""

import json
from pathlib import Path
from typing import Any

import torch

from stages.policy.checkpoint import save_base
from stages.policy.config import tiny_config
from stages.policy.modeling import OpenVLAForActionPrediction
from stages.policy.tokenizer import tiny_tokenizer
from tests.policy.tiny import ARCHITECTURE, NORM_STATS


def write_published(folder: Path, seed: int = 0, dtype: torch.dtype = torch.float32, **config_changes: Any) -> Path:
    """Towers of the published shape (224 pixels, patches of 14, no stem, all that is stored and never run), but narrow."""
    config = tiny_config(
        ARCHITECTURE.model_copy(update={"patch_size": 14, "stem": "patch", "proprio": False}), 224, NORM_STATS
    )
    config.image_resize_strategy = "resize-naive"
    config.vision_tail = True
    for name, value in config_changes.items():
        setattr(config, name, value)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = OpenVLAForActionPrediction(config).to(dtype)
    save_base(model, tiny_tokenizer(config.vocab_size_unpadded, config.n_action_bins), folder)
    towers = [
        {"mean": [0.484375, 0.455078125, 0.40625], "std": [0.228515625, 0.2236328125, 0.224609375]},
        {"mean": [0.5] * 3, "std": [0.5] * 3},
    ]
    (folder / "preprocessor_config.json").write_text(json.dumps({"tvf_normalize_params": towers}))
    return folder
