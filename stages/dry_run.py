"""What training with the params would take: the download, the memory, roughly the time. Nothing is downloaded or trained.

Memory and time are those of `stages.estimate`. The rates of the device at hand are measured, which takes a moment; where the
policy is too large for a CPU, those of data sheets tell what a GPU would make of it.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from stages.checks import FAILURE, OK, WARNING, Check
from stages.errors import ArtifactError, TgrpoError
from stages.params import Params

if TYPE_CHECKING:
    import torch

    from stages.arithmetic import Arithmetic
    from stages.policy.config import OpenVLAConfig
    from stages.policy.hub import HubId
    from stages.roofline import Rates

_LARGE = 10**9  # parameters, from which on a CPU takes days for what a GPU does in hours
_LLAMA_PROMPT = 26  # tokens of LIBERO's usual instruction in OpenVLA's prompt, BOS and the empty piece included
_HUB_TIMEOUT_S = "3"
_CACHED_READ = 2**26  # bytes: more than most caches hold, and soon read


@dataclass(frozen=True)
class _Base:
    """What is known of `policy.base` before it is loaded."""

    config: "OpenVLAConfig"
    stored_bytes: int  # of one weight
    check: Check


def examine_policy(params: Params) -> Iterator[Check]:
    """Lines on the params' policy: where it comes from, whether it fits, how long it takes."""
    try:
        base = _base(params.policy.base_of(params.task))
        yield base.check
        yield from _demands(params, base)
    except TgrpoError as error:
        yield Check("policy", FAILURE, str(error))


def _base(name: str) -> _Base:
    """Raises ArtifactError for a base that is neither a checkpoint here nor a model of the hub."""
    from stages.policy import hub

    folder = Path(name)
    model = None if folder.exists() else hub.parse(name)
    if model:
        return _of_the_hub(model)
    return _of_a_folder(folder, name, "nothing to download")


def _of_a_folder(folder: Path, name: str, where: str) -> _Base:
    from stages.estimate import size
    from stages.policy.checkpoint import base_of, is_adapter
    from stages.policy.layout import read_config
    from stages.policy.weights import StoredWeights

    folder = base_of(folder) if is_adapter(folder) else folder
    config, weights = read_config(folder), StoredWeights(folder)
    found = f"{name}: {_million(config)}, {size(weights.nbytes())} in {folder}; {where}"
    return _Base(config, weights.dtype.itemsize, Check("policy", OK, found))


def _of_the_hub(model: "HubId") -> _Base:
    os.environ.setdefault("HF_HUB_ETAG_TIMEOUT", _HUB_TIMEOUT_S)  # read when the library is imported
    from huggingface_hub import constants

    from stages.arithmetic import Arithmetic
    from stages.estimate import size
    from stages.policy import hub
    from stages.policy.config import OpenVLAConfig

    cached = _cached(model)
    try:
        plan = hub.plan(model)
    except ArtifactError:  # the hub answered: there is no such checkpoint
        if cached is None and not constants.HF_HUB_OFFLINE:
            raise
    except TgrpoError:  # no connection
        pass
    else:
        if plan.files == 0 and cached is not None:
            return _of_a_folder(cached, str(model), "the hub has no newer version")
        config = OpenVLAConfig()
        found = (
            f"{model}: would download {size(plan.nbytes)} in {plan.files} files, as the hub says, to {_cache()}; what "
            "follows is for OpenVLA-7B"
        )
        try:
            hub.refuse_small_disk(model, plan)
        except TgrpoError as error:
            return _Base(config, 2, Check("policy", FAILURE, str(error)))
        return _Base(config, 2, Check("policy", OK, found))
    if cached is not None:
        return _of_a_folder(
            cached, str(model), "already in the hub's cache; the hub cannot be asked for a newer version"
        )
    config = OpenVLAConfig()
    nbytes = 2 * Arithmetic(config, _LLAMA_PROMPT).parameters
    found = (
        f"{model}: would download about {size(nbytes)} to {_cache()}; the hub cannot be asked now, so this and what "
        "follows is for OpenVLA-7B in bfloat16"
    )
    if nbytes > _free_disk(Path(constants.HF_HUB_CACHE)):
        found = f"{found}; that is more than is free: set HF_HOME to a folder on a larger disk"
        return _Base(config, 2, Check("policy", FAILURE, found))
    return _Base(config, 2, Check("policy", WARNING, found))


def _cached(model: "HubId") -> Path | None:
    """A model's folder in the hub's cache, when it holds a whole checkpoint."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    from stages.policy import hub
    from stages.policy.weights import StoredWeights

    try:
        folder = snapshot_download(model.repo, revision=model.revision, allow_patterns=hub.FILES, local_files_only=True)
        StoredWeights(Path(folder))
    except (LocalEntryNotFoundError, TgrpoError):
        return None
    return Path(folder)


def _demands(params: Params, base: _Base) -> Iterator[Check]:
    """Whether it fits, and how long it takes."""
    import torch

    from stages.arithmetic import Arithmetic
    from stages.machine import cores
    from stages.policy.checkpoint import compute_dtype
    from stages.policy.devices import resolve_device
    from stages.roofline import PUBLISHED, measure_rates

    device = resolve_device(params.policy.device)
    stored = torch.float32 if base.stored_bytes == torch.float32.itemsize else torch.bfloat16
    chosen = compute_dtype(params.policy.dtype, device)
    dtype = chosen if isinstance(chosen, torch.dtype) else stored
    count = Arithmetic(base.config, _LLAMA_PROMPT)
    have, name = _device_memory(device)
    yield _fits(count, params, dtype, device, have, name)

    read = min(count.decode_bytes(dtype.itemsize), _CACHED_READ if device.type == "cpu" else 2**30)
    rates = measure_rates(device, dtype, read)
    hopeless = device.type == "cpu" and count.parameters > _LARGE
    yield from _takes(
        Check("time, roughly", WARNING if hopeless else OK, f"not practical on {name}: " if hopeless else ""),
        count,
        params,
        dtype.itemsize,
        rates,
        f"{name} now",
        device.type,
        cores(),
    )
    if hopeless:
        gpu = "A100 40 GB"
        yield from _takes(
            Check("time on a GPU", OK, f"{gpu}, a processor for each environment: "),
            count,
            params,
            2,
            PUBLISHED[gpu],
            "its data sheet",
            "cuda",
            max(params.rollout.envs, params.eval.envs),
        )


def _fits(
    count: "Arithmetic", params: Params, dtype: "torch.dtype", device: "torch.device", have: int, name: str
) -> Check:
    """Whether rollout and update fit; with one decision at a time if need be, which the update finds by itself."""
    from stages.estimate import memory, micro_batch, size

    decisions = micro_batch(count, params, dtype.itemsize)
    folds = device.type == "cpu" and dtype.itemsize == 4
    needed = memory(count, params, dtype.itemsize, decisions, folds)
    least = memory(count, params, dtype.itemsize, 1, folds).total
    in_bfloat16 = memory(count, params, 2, 1, False).total
    found = (
        f"rollout and update take about {size(needed.total)} in {str(dtype).removeprefix('torch.')} of {size(have)} on {name}: "
        f"weights {size(needed.weights)}, adapter and AdamW {size(needed.adapter)}, acting {size(needed.acting)}, a pass "
        f"of {decisions} decisions {size(needed.learning)}, libraries {size(needed.overhead)}"
    )
    if needed.total <= have:
        return Check("memory", OK, found)
    if least <= have:
        return Check("memory", WARNING, f"{found}; it fits with fewer decisions in a pass ({size(least)} with one)")
    if in_bfloat16 <= have:
        remedy = f"set policy.dtype=bfloat16, which takes {size(in_bfloat16)}"
    else:
        remedy = f"it takes a device with at least {size(in_bfloat16)}, in bfloat16"
    return Check("memory", FAILURE, f"{found}; it does not fit: {remedy}")


def _takes(
    check: Check,
    count: "Arithmetic",
    params: Params,
    itemsize: int,
    rates: "Rates",
    source: str,
    kind: str,
    processors: int,
) -> Iterator[Check]:
    """How long training takes, on a line that `check` begins, and one on what that is counted from."""
    from stages.estimate import REACHED, clock, duration
    from stages.sim.assets import resolve_assets
    from stages.sim.tasks import load_task

    try:
        assets = resolve_assets(params.sim).kind
    except TgrpoError:  # another line is about this
        assets = "libero"
    limit = load_task(params.task).max_env_steps
    time = duration(count, params, itemsize, rates, REACHED[kind], limit=limit, cores=processors, assets=assets)
    yield Check(
        check.name,
        check.severity,
        f"{check.found}an iteration {clock(time.iteration)}, {params.train.iterations} iterations {clock(time.training)}, an "
        f"evaluation of {params.eval.episodes} episodes {clock(time.evaluation)}, when no episode ends early",
    )
    groups = "" if params.rollout.groups == 1 else f"{params.rollout.groups} groups of "
    yield Check(
        "  counted from",
        OK,
        f"{groups}{time.decisions} decisions of {clock(time.act)}, {clock(time.sim)} of simulation after each, an update of "
        f"{clock(time.update)}; {REACHED[kind]:.0%} of {rates.matmul / 1e12:,.3g} TFLOP/s and {rates.bandwidth / 1e9:,.0f} GB/s "
        f"of {source}",
    )


def _device_memory(device: "torch.device") -> tuple[int, str]:
    """Bytes that training may have, and what to call the device."""
    if device.type == "cuda":
        import torch

        return torch.cuda.mem_get_info(device)[1], torch.cuda.get_device_name(device)
    from stages.sim.memory import available_bytes

    return available_bytes(), "the CPU"


def _cache() -> str:
    from huggingface_hub import constants

    from stages.estimate import size

    folder = Path(constants.HF_HUB_CACHE)
    return f"{folder} ({size(_free_disk(folder))} free)"


def _free_disk(folder: Path) -> int:
    import shutil

    return shutil.disk_usage(next(place for place in (folder, *folder.parents) if place.exists())).free


def _million(config: "OpenVLAConfig") -> str:
    from stages.arithmetic import Arithmetic

    return f"{Arithmetic(config, _LLAMA_PROMPT).parameters / 1e6:,.1f} million parameters"
