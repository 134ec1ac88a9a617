"""Which device `policy.device` means."""

import torch

from stages.errors import ParamsError


def resolve_device(name: str) -> torch.device:
    """`auto` (CUDA where there is some), `cpu`, `cuda` or `cuda:N`.

    Raises:
        ParamsError: a device of another kind, or one that torch does not see.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise ParamsError(f"policy.device = {name!r}: expected auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ParamsError(
            f"policy.device = {name!r}: torch sees {torch.cuda.device_count()} CUDA devices; set policy.device=auto"
        )
    return device
