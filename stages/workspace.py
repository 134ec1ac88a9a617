"""What several stages open from params: the task's environments, the policy, the reward. And where artifacts go."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.errors import ArtifactError, MismatchError, TgrpoError, UsageError
from stages.params import Params
from stages.reporting import Reporter, Silent
from stages.reward_files import builtin_reward, load_reward
from stages.rewards.program import Reward
from stages.rewards.scorer import make_context
from stages.store.artifacts import digest_of
from stages.store.provenance import Manifest, hub_name, read_manifest

if TYPE_CHECKING:
    from stages.policy.policy import VLAPolicy
    from stages.sim.env import LiberoEnv
    from stages.sim.vector import VectorEnv

log = logging.getLogger(__name__)

DATA = Path("data")


def next_path(kind: str, suffix: str = "") -> Path:
    """The next free number under data/<kind>, such as data/groups/0007.zarr."""
    folder = DATA / kind
    taken = [int(path.name[:4]) for path in folder.glob(f"[0-9][0-9][0-9][0-9]{suffix}")]
    return folder / f"{max(taken, default=0) + 1:04d}{suffix}"


def newest(kind: str) -> Path:
    """The last numbered artifact of data/<kind>.

    Raises:
        UsageError: there is none.
    """
    found = sorted((DATA / kind).glob("[0-9][0-9][0-9][0-9]*"))
    if not found:
        raise UsageError(f"{DATA / kind} holds nothing yet; name a path")
    return found[-1]


def open_env(params: Params, num_envs: int) -> "VectorEnv":
    """Starts `num_envs` environments of the params' task, each in a worker process."""
    from stages.sim.assets import resolve_assets
    from stages.sim.tasks import load_task
    from stages.sim.vector import VectorEnv

    task = load_task(params.task)
    return VectorEnv(task, num_envs, params.sim, resolve_assets(params.sim))


def locate(checkpoint: Path) -> Path:
    """A checkpoint's folder: the path itself, or for a model of the hub, `owner/name[@revision]`, its place in the hub's
    cache, downloaded when it is not there.

    Raises:
        ArtifactError, TgrpoError: it cannot be downloaded; see `hub.fetch`.
    """
    from stages.policy import hub

    model = None if checkpoint.exists() else hub.parse(checkpoint.as_posix())
    return hub.fetch(model) if model else checkpoint


def open_checkpoint(params: Params, checkpoint: Path) -> tuple[Params, Path]:
    """What every stage that runs a checkpoint asks first: its folder, and the params to run it with.

    A published checkpoint has no settings of the simulator written down but was trained on LIBERO's. Where params have
    other images or decisions, as those of the CPU profile, it runs under LIBERO's protocol of evaluation, and a note says so.

    Raises:
        ArtifactError, TgrpoError: see `locate` and `read_checkpoint`.
    """
    checkpoint = locate(checkpoint)
    if not checkpoint.exists():
        from stages.sim.tasks import load_task

        load_task(params.task)  # where the checkpoint is named after a task, it is the task that may be none
    made_for = read_checkpoint(checkpoint).details
    if not made_for.get("published") or not _unfit(params, made_for):
        return params, checkpoint
    log.info(
        "%s is a checkpoint of LIBERO's own setting, so it runs with images of 256 pixels, a decision at every step and "
        "exact physics instead of params' sim (SimParams.benchmark)",
        hub_name(checkpoint) or checkpoint,
    )
    return params.model_copy(update={"sim": params.sim.benchmark()}), checkpoint


def require_fit(params: Params, checkpoint: Path) -> Manifest:
    """That a checkpoint was made for the images and decisions that params ask for, without loading it; its manifest.

    Raises:
        ArtifactError: no checkpoint.
        MismatchError: another image size, action repeat or image pipeline.
    """
    manifest = read_checkpoint(checkpoint)
    for key in _unfit(params, manifest.details):
        made_for = manifest.details[key]
        raise MismatchError(
            f"{checkpoint} was made for sim.{key} = {made_for}, but params say {getattr(params.sim, key)}; "
            f"add --set sim.{key}={made_for} or train a base for this setting with `tgrpo sft`"
        )
    crop = manifest.params.get("policy", {}).get("center_crop", params.policy.center_crop)
    if manifest.details.get("published") and crop != params.policy.center_crop:
        raise MismatchError(
            f"{checkpoint} was trained with policy.center_crop = {str(crop).lower()}, and params say the opposite, so it would "
            f"see other images; add --set policy.center_crop={str(crop).lower()}"
        )
    return manifest


def open_policy(params: Params, checkpoint: Path, trainable: bool = False) -> "VLAPolicy":
    """Loads a checkpoint that params fit.

    A stage that simulates opens its environments first: they fail within seconds, where loading can take minutes.

    Raises:
        ArtifactError: not a whole checkpoint, or norm_stats that lack the task's suite.
        MismatchError: see `require_fit`; or an adapter on another base than it was trained on.
        TgrpoError: too little memory.
    """
    checkpoint = locate(checkpoint)
    manifest = require_fit(params, checkpoint)
    import torch

    from stages.policy.checkpoint import base_of, is_adapter
    from stages.policy.policy import VLAPolicy

    base = base_of(checkpoint) if is_adapter(checkpoint) else checkpoint
    recorded = manifest.inputs.get("base")
    if recorded and base != checkpoint and digest_of(base) != recorded["digest"]:
        raise MismatchError(
            f"{checkpoint} is an adapter for another base: {base} has digest {digest_of(base)[:12]}, it was trained on "
            f"{recorded['digest'][:12]}; put that base back"
        )
    refuse_small_memory(base, params.policy.device, params.policy.dtype)
    torch.set_num_threads(1)  # see learning_threads
    return VLAPolicy.load(
        checkpoint,
        params.policy.device,
        trainable=trainable,
        suite=params.task.split("/")[0],
        dtype=params.policy.dtype,
        center_crop=params.policy.center_crop,
        sampling=params.policy.sampling,
        gradient_checkpointing=params.policy.gradient_checkpointing,
    )


def refuse_small_memory(base: Path, device: str, dtype: str) -> None:
    """Raises TgrpoError, before any is read, when a base folder's weights do not fit into the device's free memory."""
    import torch

    from stages.policy.checkpoint import compute_dtype
    from stages.policy.devices import resolve_device
    from stages.policy.memory import free_bytes
    from stages.policy.weights import StoredWeights
    from stages.sim.memory import available_bytes

    target = resolve_device(device)
    computes_in = compute_dtype(dtype, target)
    weights = StoredWeights(base)
    needed = weights.nbytes(None if computes_in == "auto" else computes_in)
    free = available_bytes() if target.type == "cpu" else free_bytes(target)
    if needed <= free:
        return
    smaller = weights.nbytes(torch.bfloat16)
    remedy = (
        f"set policy.dtype=bfloat16 ({smaller / 2**30:.1f} GiB), or " if smaller <= free and smaller < needed else ""
    )
    raise TgrpoError(
        f"{base}: its weights take {needed / 2**30:.1f} GiB on {target}, where {free / 2**30:.1f} GiB are free; "
        f"{remedy}close what else runs there, or choose another policy.device"
    )


@contextmanager
def learning_threads(params: Params) -> Iterator[None]:
    """Gives torch the params' threads while nothing else runs; one otherwise.

    Two threads that act beside busy environment processes wait for each other and were measured 10 times slower. The
    number is a param, because sums split over another number of threads round differently.
    """
    import torch

    torch.set_num_threads(params.policy.threads)
    try:
        yield
    finally:
        torch.set_num_threads(1)


def read_checkpoint(checkpoint: Path) -> Manifest:
    """A checkpoint's manifest; for a published OpenVLA checkpoint, what it would say.

    Raises:
        ArtifactError: nothing whole there, a kind of artifact that is no checkpoint, or another kind of model.
    """
    if not checkpoint.exists():
        raise ArtifactError(
            f"{checkpoint} does not exist; expected a checkpoint folder: make a base with `tgrpo demos | tgrpo sft`, "
            "or leave --checkpoint out for the embedded one"
        )
    if not any((checkpoint / name).exists() for name in ("tgrpo.json", "zarr.json", "config.json")):
        raise ArtifactError(
            f"{checkpoint} is no checkpoint: it has neither a config.json nor a tgrpo.json; name a folder in OpenVLA's "
            "published layout, a model of the hub (owner/name), or what `tgrpo sft` or `tgrpo update` wrote"
        )
    return read_manifest(checkpoint, "checkpoint")


def _unfit(params: Params, made_for: Mapping[str, Any]) -> list[str]:
    """The settings of the simulator at which a checkpoint and params differ."""
    return [key for key in ("image_size", "action_repeat") if made_for[key] != getattr(params.sim, key)]


def task_objects(object_names: tuple[str, ...]) -> tuple[str, str]:
    """The object to pick and the container, of a LIBERO-Object task: LIBERO lists the two of interest first.

    Raises:
        UsageError: a task of another shape, for which there is no expert.
    """
    target, container = object_names[:2]
    if not container.startswith("basket"):
        raise UsageError(
            f"the expert is for the pick-and-place tasks of libero_object; this one has {', '.join(object_names)}"
        )
    return target, container


def policy_for_probes(params: Params, reporter: Reporter | None = None) -> Path | None:
    """The checkpoint whose own episodes a reward is verified on: `policy.base` where it lies on this disk, else None."""
    base = Path(params.policy.base_of(params.task))
    if base.is_dir():
        return base
    (reporter or Silent()).note(
        f"{base} is not on this disk, so the probes of {params.task} hold no episodes of a policy; verify-reward takes one by "
        "--checkpoint"
    )
    return None


def task_reward(params: Params, env: "VectorEnv | LiberoEnv", reward: Path | None = None) -> Reward:
    """The reward at `reward` (see `load_reward`), or the built-in one for the environment's task.

    Raises:
        ArtifactError, ParamsError, TaskError, RewardError: see `load_reward` and `builtin_reward`.
    """
    if reward is not None:
        return load_reward(reward)
    return builtin_reward(params.gen_reward, make_context(env.task.id, env.names, env.task.max_env_steps))
