"""`tgrpo update`: a checkpoint, its groups and their advantages -> the next checkpoint.

One iteration of Algorithm 1's second half: minibatches of decisions from all groups, the policy ratio against what was
sampled (clipped as in eq. 3, or plain as in eq. 9 with `clip: 0`), a KL to the reference policy (the adapter switched
off), AdamW on the LoRA weights. The paper updates after every time step; here a shuffled minibatch takes its place:
the same objective, with less correlated updates.
"""

import csv
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from safetensors.torch import load_file, save_file

from stages.decisions import gather_decisions
from stages.describe import describe
from stages.errors import MismatchError
from stages.learner import Learner
from stages.params import Params
from stages.reporting import Reporter, Silent
from stages.seeding import derive_seed
from stages.store.advantages import Advantages, open_advantages
from stages.store.artifacts import atomic_directory, digest_of, refuse_existing
from stages.store.groups import Group, open_group
from stages.store.handles import Handle
from stages.store.provenance import Manifest, hub_name, reference, resolve_reference, write_manifest
from stages.workspace import learning_threads, locate, next_path, open_checkpoint, open_policy, read_checkpoint

OPTIMIZER = "optimizer.safetensors"
HISTORY = "history.csv"


def history_row(iteration: int, groups: Sequence[Group], used: int, update: dict[str, float]) -> dict[str, float]:
    """One line of a run's history: what the rollouts showed (means over trajectories) and what the update did."""
    masks = [group["mask"][:] for group in groups]
    entropy = [group["entropy"][:][mask].mean() for group, mask in zip(groups, masks, strict=True)]
    trajectories = sum(group.trajectories for group in groups)
    return {
        "iteration": iteration,
        "success": sum(group.summary.successes for group in groups) / trajectories,
        "return": float(np.mean([group.summary.mean_return for group in groups])),
        "decisions": float(np.mean([group.summary.mean_length for group in groups])),
        "entropy": float(np.mean(entropy)),
        "groups": len(groups),
        "groups_used": used,
        **{name: update.get(name, 0.0) for name in UPDATE_COLUMNS},
    }


UPDATE_COLUMNS = ("loss", "kl", "approx_kl", "ratio_mean", "ratio_max", "clip_fraction", "grad_norm", "updates")


def learn(
    learner: Learner,
    pairs: Sequence[tuple[Group, Advantages]],
    params: Params,
    iteration: int,
    reporter: Reporter | None,
) -> dict[str, float]:
    """The core: updates the learner on groups and their advantages; returns the iteration's line of the history.

    When no decision is of use (all returns equal, all advantages zero), the weights stay as they are.

    Raises:
        MismatchError: as `gather_decisions`, and as `Learner.update`.
    """
    decisions = gather_decisions(pairs, learner.policy.token_ids)
    if decisions is None:
        (reporter or Silent()).note(
            f"iteration {iteration}: all groups have equal returns or no advantage, nothing to learn from"
        )
        metrics: dict[str, float] = {}
    else:
        with learning_threads(params):
            metrics = learner.update(decisions, derive_seed(params.seed, "update", iteration), reporter)
    return history_row(iteration, [group for group, _ in pairs], sum(a.attrs.used for _, a in pairs), metrics)


def write_checkpoint(
    learner: Learner,
    out: Path,
    *,
    parent: Path,
    parent_manifest: Manifest,
    base: Path,
    history: Sequence[dict[str, float]],
    group: Group,
    seed: int,
    params: Params,
    inputs: dict[str, dict[str, str]],
    overwrite: bool = False,
) -> Handle:
    """Writes the adapter, AdamW's state, the run's history so far and where it all comes from.

    Args:
        group: one of those learnt from; its task becomes the checkpoint's, which a published base has none of.
    """
    with atomic_directory(out, overwrite=overwrite) as folder:
        learner.policy.save_adapter(folder, hub_name(base) or os.path.relpath(base.absolute(), out.absolute()))
        save_file(learner.optimizer_state(), folder / OPTIMIZER)
        write_history(folder / HISTORY, history)
        write_manifest(
            folder,
            Manifest(
                kind="checkpoint",
                params=params.model_dump(include={"policy", "update"}),
                seed=seed,
                inputs={"parent": reference(parent, out), "base": reference(base, out), **inputs},
                details={
                    **parent_manifest.details,
                    "task": group.attrs.task,
                    "instruction": group.attrs.instruction,
                    "iteration": int(history[-1]["iteration"]),
                },
            ),
        )
    return describe(out)


def write_history(path: Path, history: Sequence[dict[str, float]]) -> None:
    """Writes one line per iteration as CSV, numbers in full precision."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, history[0].keys(), lineterminator="\n")
        writer.writeheader()
        writer.writerows(history)


def read_history(checkpoint: Path) -> list[dict[str, float]]:
    """The history that a checkpoint carries; empty for a base."""
    if not (checkpoint / HISTORY).exists():
        return []
    with (checkpoint / HISTORY).open(newline="") as file:
        return [
            {
                name: int(value) if name in ("iteration", "groups", "groups_used") else float(value)
                for name, value in row.items()
            }
            for row in csv.DictReader(file)
        ]


def base_of(checkpoint: Path, manifest: Manifest) -> Path:
    """The base that a checkpoint's adapter sits on; a base is its own."""
    recorded = manifest.inputs.get("base")
    return locate(resolve_reference(recorded, checkpoint)) if recorded else checkpoint


def open_learner(params: Params, checkpoint: Path) -> Learner:
    """Loads a checkpoint for training: with a new adapter on a base, with its adapter and optimiser state otherwise."""
    policy = open_policy(params, checkpoint, trainable=True)
    if not policy.has_adapter:
        policy.add_lora(params.policy.lora, derive_seed(params.seed, "lora"))
    learner = Learner(policy, params.update)
    if (checkpoint / OPTIMIZER).exists():
        learner.load_optimizer_state(load_file(checkpoint / OPTIMIZER))
    return learner


def update(
    params: Params,
    handles: Sequence[Handle],
    checkpoint: Path | None = None,
    out: Path | None = None,
    reporter: Reporter | None = None,
    overwrite: bool = False,
) -> Handle:
    """Updates the policy that sampled the groups on their advantages and writes the next checkpoint.

    Args:
        handles: advantages, one per group.
        checkpoint: the policy; None takes the one that the groups name.

    Raises:
        MismatchError: groups sampled by several policies, or by another one than `checkpoint`.
    """
    pairs = [open_pair(handle.path) for handle in handles]
    sampled_by = {group.path: group.attrs.inputs.get("checkpoint") for group, _ in pairs}
    for path, recorded in sampled_by.items():
        if recorded is None:
            raise MismatchError(
                f"{path} was not sampled by a policy (demonstrations?); sample one with `tgrpo rollout`"
            )
    digests = {recorded["digest"] for recorded in sampled_by.values() if recorded}
    if len(digests) > 1:
        raise MismatchError(
            f"the groups were sampled by {len(digests)} different checkpoints; pass those of one `tgrpo rollout` at a time"
        )
    first_group = pairs[0][0]
    checkpoint = checkpoint or resolve_reference(first_group.attrs.inputs["checkpoint"], first_group.path)
    params, checkpoint = open_checkpoint(params, checkpoint)
    manifest = read_checkpoint(checkpoint)
    found = digest_of(checkpoint)
    if found not in digests:
        raise MismatchError(
            f"{checkpoint} (digest {found[:12]}) is not the checkpoint that sampled {first_group.path} "
            f"(digest {digests.pop()[:12]}); leave --checkpoint out, or sample again with it"
        )
    out = out or next_path("checkpoints")
    refuse_existing(out, overwrite)
    learner = open_learner(params, checkpoint)
    iteration = manifest.details["iteration"] + 1
    row = learn(learner, pairs, params, iteration, reporter)
    return write_checkpoint(
        learner,
        out,
        parent=checkpoint,
        parent_manifest=manifest,
        base=base_of(checkpoint, manifest),
        history=[*read_history(checkpoint), row],
        group=first_group,
        seed=params.seed,
        params=params,
        inputs=update_inputs([handle.path for handle in handles], out),
        overwrite=overwrite,
    )


def update_inputs(advantages: Sequence[Path], out: Path) -> dict[str, dict[str, str]]:
    """The advantages that an update learnt from, by digest."""
    return {f"advantages_{index:03d}": reference(path, out) for index, path in enumerate(advantages)}


def open_pair(path: Path) -> tuple[Group, Advantages]:
    """Advantages and the group they belong to.

    Raises:
        ArtifactError: one of the two is not whole.
        MismatchError: the group has changed since its advantages were computed.
    """
    advantages = open_advantages(path)
    recorded = advantages.attrs.inputs["group"]
    group_at = resolve_reference(recorded, path)
    group = open_group(group_at)
    if digest_of(group_at) != recorded["digest"]:
        raise MismatchError(
            f"{group_at} is not the group that {path} was computed from; run `tgrpo advantage` on it again"
        )
    return group, advantages
