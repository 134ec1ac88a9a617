"""What several stages open from params: the task's environments, the policy, the reward. And where artifacts go."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from stages.errors import ArtifactError, MismatchError, UsageError
from stages.params import Params
from stages.rewards.spec import RewardSpec
from stages.store.provenance import Manifest, read_manifest

if TYPE_CHECKING:
    from stages.policy.policy import VLAPolicy
    from stages.sim.vector import VectorEnv

DATA = Path("data")


def next_path(kind: str, suffix: str = "") -> Path:
    """The next free number under data/<kind>, such as data/groups/0007.zarr."""
    folder = DATA / kind
    taken = [int(path.name[:4]) for path in folder.glob(f"[0-9][0-9][0-9][0-9]{suffix}")]
    return folder / f"{max(taken, default=0) + 1:04d}{suffix}"


def open_env(params: Params, num_envs: int) -> "VectorEnv":
    """Starts `num_envs` environments of the params' task, each in a worker process."""
    from stages.sim.assets import resolve_assets
    from stages.sim.tasks import load_task
    from stages.sim.vector import VectorEnv

    task = load_task(params.task)
    return VectorEnv(task, num_envs, params.sim, resolve_assets(params.sim))


def open_policy(params: Params, checkpoint: Path, trainable: bool = False) -> "VLAPolicy":
    """Loads a checkpoint and checks that it was made for the images and decisions that params ask for.

    Raises:
        ArtifactError: not a whole checkpoint.
        MismatchError: another image size or action repeat.
    """
    made_for = read_checkpoint(checkpoint).details
    for key in ("image_size", "action_repeat"):
        if made_for[key] != getattr(params.sim, key):
            raise MismatchError(
                f"{checkpoint} was made for sim.{key} = {made_for[key]}, but params say {getattr(params.sim, key)}; "
                f"add --set sim.{key}={made_for[key]} or train a base for this setting with `tgrpo sft`"
            )
    import torch

    from stages.policy.policy import VLAPolicy

    torch.set_num_threads(1)  # see learning_threads
    return VLAPolicy.load(checkpoint, params.policy.device, trainable=trainable)


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
    """A checkpoint's manifest.

    Raises:
        ArtifactError: nothing whole there, a kind of artifact that is no checkpoint, or a published OpenVLA checkpoint,
            whose image pipeline is not reproduced yet, so that it would be trained on images it does not know.
    """
    published = (checkpoint / "config.json").exists() and not (checkpoint / "tgrpo.json").exists()
    if published or checkpoint.as_posix().startswith("openvla/"):
        raise ArtifactError(
            f"{checkpoint} is a published OpenVLA checkpoint, and this version has no exact copy of its image pipeline yet; "
            "expected a base that `tgrpo sft` wrote, such as the embedded data/embedded/openvla-tiny-butter"
        )
    if not checkpoint.exists():
        raise ArtifactError(
            f"{checkpoint} does not exist; expected a checkpoint folder: make a base with `tgrpo demos | tgrpo sft`, "
            "or leave --checkpoint out for the embedded one"
        )
    return read_manifest(checkpoint, "checkpoint")


def task_objects(object_names: tuple[str, ...]) -> tuple[str, str]:
    """The object to pick and the container, of a LIBERO-Object task: LIBERO lists the two of interest first.

    Raises:
        UsageError: a task of another shape, for which there is no built-in reward or expert.
    """
    target, container = object_names[:2]
    if not container.startswith("basket"):
        raise UsageError(
            f"the built-in reward and expert are for the pick-and-place tasks of libero_object; this one has "
            f"{', '.join(object_names)}"
        )
    return target, container


def task_reward(params: Params, object_names: tuple[str, ...], reward: Path | None = None) -> RewardSpec:
    """The reward artifact at `reward`, or the built-in program with the params' thresholds."""
    if reward is None:
        return RewardSpec.builtin(params.gen_reward, *task_objects(object_names))
    return RewardSpec.from_json(read_manifest(reward, "reward").details["spec"], str(reward))
