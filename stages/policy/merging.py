"""An adapter and its base -> one checkpoint in the base's layout.

Weight files are copied as they are and the tensors that the adapter changes are written over, one at a time: names, order,
shards, index and dtypes stay the base's, and memory holds one tensor. W + (alpha / r) B A is computed in float32 and rounded
once, to what W is stored in.
"""

import math
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from stages.errors import ArtifactError, MismatchError, TgrpoError
from stages.policy.layout import ADAPTER_CONFIG, ADAPTER_WEIGHTS, one_line, read_json
from stages.policy.weights import INDEX, StoredWeights, weight_files

_PREFIX, _A, _B = "base_model.model.", ".lora_A.weight", ".lora_B.weight"
# Forms of adapter that are not W + scale B A, by the field of peft's configuration that asks for them.
_OTHER_FORMS = ("use_dora", "fan_in_fan_out", "lora_bias", "modules_to_save", "rank_pattern", "alpha_pattern")
_OUR_OWN = ("tgrpo.json", ADAPTER_CONFIG)  # what says that a folder is something else than a published checkpoint


def merge(base: Path, adapter: Path, out: Path) -> int:
    """Writes the merged checkpoint into the folder `out`, which exists and is empty; returns how many tensors changed.

    Everything beside the weights (configuration, tokenizer, statistics, preprocessor) is copied from the base.

    Raises:
        ArtifactError: a broken base or adapter, or an adapter that is no plain LoRA.
        MismatchError: an adapter for other weights than the base's.
        TgrpoError: the disk has no room for the copy.
    """
    weights = StoredWeights(base)
    lora, scale = _read_lora(adapter)
    for name, (a, b) in lora.items():
        stored = weights.tensors.get(name)
        if stored is None or math.prod(stored.shape) != b.shape[0] * a[0].numel() or stored.shape[0] != b.shape[0]:
            raise MismatchError(
                f"{adapter} changes {name}, which {base} does not hold in that shape; name its own base"
            )
    files = weight_files(base)
    size, free = sum(file.stat().st_size for file in files), shutil.disk_usage(out).free
    if size > free:
        raise TgrpoError(
            f"the merged checkpoint takes {size / 2**30:.1f} GiB, and {out.parent} has {free / 2**30:.1f} free; "
            "free some, or choose --out on another disk"
        )
    for file in sorted(base.iterdir()):
        beside = file.suffix in (".json", ".model", ".py") and file.name not in _OUR_OWN
        if beside or file in files or file.name == INDEX:
            shutil.copyfile(file, out / file.name)
    for name, (a, b) in lora.items():
        stored = weights.tensors[name]
        merged = merged_weight(weights.read(name), a, b, scale)
        with (out / stored.file.name).open("r+b") as copy:
            copy.seek(stored.offset)
            copy.write(merged.contiguous().view(-1).view(torch.uint8).numpy().data)
    return len(lora)


def merged_weight(weight: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
    """W + scale B A in W's dtype and shape, for the weight of a linear layer or a convolution."""
    delta = scale * (b.float().flatten(1) @ a.float().flatten(1))
    return (weight.float() + delta.view(weight.shape)).to(weight.dtype)


def _read_lora(adapter: Path) -> tuple[dict[str, tuple[Tensor, Tensor]], float]:
    """A and B by the name of the weight they change, and the factor of their product."""
    config = read_json(adapter / ADAPTER_CONFIG)
    forms = [key for key in _OTHER_FORMS if config.get(key)]
    if config.get("peft_type") != "LORA" or forms or config.get("bias", "none") != "none":
        found = ", ".join(forms) or f"peft_type {config.get('peft_type')!r} with bias {config.get('bias')!r}"
        raise ArtifactError(f"{adapter}/{ADAPTER_CONFIG}: {found}; expected plain LoRA; merge it with peft")
    try:
        state = load_file(adapter / ADAPTER_WEIGHTS)
    except (OSError, SafetensorError, ValueError) as error:
        raise ArtifactError(f"{adapter}/{ADAPTER_WEIGHTS} cannot be read: {one_line(error)}; make it again") from None
    lora = {}
    for name in sorted(state):
        stem = name.removeprefix(_PREFIX).removesuffix(_A)
        if name == f"{_PREFIX}{stem}{_A}" and f"{_PREFIX}{stem}{_B}" in state:
            lora[f"{stem}.weight"] = state[name], state[f"{_PREFIX}{stem}{_B}"]
    if not lora or 2 * len(lora) != len(state):
        raise ArtifactError(
            f"{adapter}/{ADAPTER_WEIGHTS} holds other tensors than pairs of lora_A and lora_B; make it again"
        )
    return lora, _scale(config)


def _scale(config: dict[str, Any]) -> float:
    return config["lora_alpha"] / (math.sqrt(config["r"]) if config.get("use_rslora") else config["r"])
