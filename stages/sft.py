"""`tgrpo sft`: demonstrations -> a base checkpoint, by behaviour cloning.

Cross-entropy of the expert's action tokens under teacher forcing, AdamW with a warm-up and a cosine decay, and random
shifts of the image by a few pixels. The statistics that normalise actions and proprioception come from the
demonstrations and travel with the checkpoint, as OpenVLA's `norm_stats` do.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from stages.describe import describe
from stages.errors import MismatchError, UsageError
from stages.lineage import TRAINED_ON, trained_on
from stages.params import Params
from stages.policy.policy import VLAPolicy
from stages.reporting import Reporter, Silent
from stages.seeding import derive_seed
from stages.store.artifacts import atomic_directory, refuse_existing
from stages.store.groups import open_group
from stages.store.handles import Handle
from stages.store.provenance import Manifest, reference, write_manifest
from stages.workspace import learning_threads, next_path


def norm_stats(suite: str, actions: NDArray[np.float64], proprio: NDArray[np.float32]) -> dict[str, Any]:
    """Statistics in the published layout, from actions (B, 7) and proprioception (B, 8).

    Dimensions in which the expert never moves, and the gripper, are left as they are (mask false), because their
    quantiles span nothing.
    """

    def describe(values: NDArray[Any]) -> dict[str, list[float]]:
        values = values.astype(np.float64)
        return {
            "mean": values.mean(0).tolist(),
            "std": values.std(0).tolist(),
            "min": values.min(0).tolist(),
            "max": values.max(0).tolist(),
            "q01": np.quantile(values, 0.01, axis=0).tolist(),
            "q99": np.quantile(values, 0.99, axis=0).tolist(),
        }

    action = describe(actions)
    spread = np.array(action["q99"]) - np.array(action["q01"]) > 1e-6
    mask = [bool(moves) for moves in spread[:-1]] + [False]
    return {suite: {"action": {**action, "mask": mask}, "proprio": describe(proprio)}}


def clone(
    policy: VLAPolicy,
    image: NDArray[np.uint8],
    proprio: NDArray[np.float32],
    action: NDArray[np.float64],
    instruction: str,
    params: Params,
    reporter: Reporter | None = None,
) -> list[float]:
    """The core: trains all weights of `policy` on decisions (B, ...); returns the loss of every update (nats per token)."""
    p = params.sft
    reporter = reporter or Silent()
    rng = np.random.default_rng(derive_seed(params.seed, "sft"))
    tokens = policy.encode_actions(action)
    parameters = [parameter for _, parameter in policy.trainable_parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=p.lr, weight_decay=p.weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda update: min(
            (update + 1) / (p.warmup + 1), 0.5 * (1 + math.cos(math.pi * update / p.updates)) * 0.98 + 0.02
        ),
    )
    losses: list[float] = []
    with reporter.bar("sft", p.updates) as advance:
        for _ in range(p.updates):
            rows = rng.integers(len(image), size=p.batch_size)
            shifted = shift_images(image[rows], p.image_shift, rng)
            loss = -policy.log_prob(shifted, proprio[rows], instruction, tokens[rows]).log_prob.mean()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
            advance(1, f"loss {np.mean(losses[-50:]):.3f}")
    return losses


def shift_images(images: NDArray[np.uint8], most: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Moves each image (B, H, W, 3) by up to `most` pixels in x and y, repeating its border."""
    if most == 0:
        return images
    padded = np.pad(images, ((0, 0), (most, most), (most, most), (0, 0)), mode="edge")
    height, width = images.shape[1:3]
    offsets = rng.integers(2 * most + 1, size=(len(images), 2))
    return np.stack([frame[y : y + height, x : x + width] for frame, (y, x) in zip(padded, offsets, strict=True)])


def sft(
    params: Params,
    demonstrations: Sequence[Path],
    out: Path | None = None,
    reporter: Reporter | None = None,
    overwrite: bool = False,
) -> Handle:
    """Trains a new `openvla-tiny` on demonstration groups and writes it as a base checkpoint (iteration 0).

    Raises:
        UsageError: no demonstrations.
        MismatchError: groups of several tasks, image sizes or action repeats, or without images.
    """
    if not demonstrations:
        raise UsageError("no demonstrations; record some with `tgrpo demos`")
    out = out or next_path("checkpoints")
    refuse_existing(out, overwrite)
    groups = [open_group(path) for path in demonstrations]
    first = groups[0].attrs
    for path, group in zip(demonstrations, groups, strict=True):
        for key in ("task", "image_size", "action_repeat"):
            if getattr(group.attrs, key) != getattr(first, key):
                raise MismatchError(
                    f"{path} has {key} {getattr(group.attrs, key)}, but {demonstrations[0]} has {getattr(first, key)}"
                )
    if first.image_size == 0:
        raise MismatchError(f"{demonstrations[0]} holds no images (probes keep none); clone groups of `tgrpo demos`")

    def column(name: str) -> NDArray[Any]:
        return np.concatenate([group[name][:][group["mask"][:]] for group in groups])

    action, proprio = column("action_label"), column("proprio")
    stats = norm_stats(first.task.split("/")[0], action, proprio)
    policy = VLAPolicy.new(
        params.sft.architecture, first.image_size, stats, derive_seed(params.seed, "weights"), params.policy.device
    )
    with learning_threads(params):
        losses = clone(policy, column("image"), proprio, action, first.instruction, params, reporter)
    with atomic_directory(out, overwrite=overwrite) as folder:
        policy.save_base(folder)
        write_manifest(
            folder,
            Manifest(
                kind="checkpoint",
                params=params.model_dump(include={"sft"}),
                seed=params.seed,
                inputs={
                    f"demonstration_{index:03d}": reference(path, out) for index, path in enumerate(demonstrations)
                },
                details={
                    "task": first.task,
                    "instruction": first.instruction,
                    "iteration": 0,
                    "image_size": first.image_size,
                    "action_repeat": first.action_repeat,
                    "assets": first.params["assets"],
                    "decisions": len(action),
                    TRAINED_ON: trained_on(groups),
                    "final_loss": round(float(np.mean(losses[-50:])), 6),
                },
            ),
        )
    return describe(out)
