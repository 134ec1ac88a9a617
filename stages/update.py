"""`tgrpo update`: a checkpoint, its groups and their advantages -> the next checkpoint.

One iteration of Algorithm 1's second half, or of what it is compared with (`update.algo`, see `recipe`): optimiser updates
over the decisions of all groups (`update.schedule`), the policy ratio against what was sampled (clipped as in eq. 3, or plain
as in eq. 9 with `clip: 0`), a KL to the reference policy (the adapter switched off), AdamW on the LoRA weights.
"""

import os
from collections.abc import Sequence
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from stages.decisions import gather_decisions
from stages.describe import describe
from stages.errors import ArtifactError, MismatchError
from stages.history import HISTORY, history_row, read_history, write_history
from stages.learner import Learner
from stages.lineage import TRAINED_ON, trained_on
from stages.params import Params
from stages.policy.critic import Critic
from stages.reporting import Reporter, Silent
from stages.seeding import derive_seed
from stages.store.advantages import Advantages, open_advantages
from stages.store.artifacts import atomic_directory, digest_of, refuse_existing
from stages.store.groups import Group, open_group
from stages.store.handles import Handle
from stages.store.provenance import Manifest, hub_name, reference, resolve_reference, write_manifest
from stages.workspace import learning_threads, locate, next_path, open_checkpoint, open_policy, read_checkpoint

OPTIMIZER = "optimizer.safetensors"
CRITIC = "critic.safetensors"


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
        MismatchError: as `gather_decisions`, and as `Learner.update`; or advantages that were computed for another algorithm.
        DivergedError: as `Learner.update`; the learner is to be opened anew then.
    """
    for _, advantages in pairs:
        if advantages.attrs.algo != params.update.algo:
            raise MismatchError(
                f"{advantages.path} holds advantages for update.algo={advantages.attrs.algo}, and params say "
                f"{params.update.algo}; add --algo {advantages.attrs.algo}, or run `tgrpo advantage` again"
            )
    decisions = gather_decisions(pairs, learner.policy.token_ids)
    if decisions is None:
        (reporter or Silent()).note(
            f"iteration {iteration}: no group has anything to learn from, the weights stay as they are"
        )
        metrics: dict[str, float] = {}
    else:
        with learning_threads(params):
            metrics = learner.update(decisions, derive_seed(params.seed, "update", iteration), reporter)
    return history_row(iteration, pairs, metrics)


def write_checkpoint(
    learner: Learner,
    out: Path,
    *,
    parent: Path,
    parent_manifest: Manifest,
    base: Path,
    history: Sequence[dict[str, float]],
    groups: Sequence[Group],
    seed: int,
    params: Params,
    inputs: dict[str, dict[str, str]],
    overwrite: bool = False,
) -> Handle:
    """Writes the adapter, AdamW's state, PPO's critic, the run's history so far and where it all comes from.

    Args:
        groups: those learnt from. Their task becomes the checkpoint's, which a published base has none of, and their start
            states join those that it was trained on.
    """
    with atomic_directory(out, overwrite=overwrite) as folder:
        learner.policy.save_adapter(folder, hub_name(base) or os.path.relpath(base.absolute(), out.absolute()))
        save_file(learner.optimizer_state(), folder / OPTIMIZER)
        if learner.actor_critic is not None:
            save_file(learner.actor_critic.stored(), folder / CRITIC)
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
                    "task": groups[0].attrs.task,
                    "instruction": groups[0].attrs.instruction,
                    "iteration": int(history[-1]["iteration"]),
                    TRAINED_ON: trained_on(groups, parent_manifest),
                },
            ),
        )
    return describe(out)


def base_of(checkpoint: Path, manifest: Manifest) -> Path:
    """The base that a checkpoint's adapter sits on; a base is its own."""
    recorded = manifest.inputs.get("base")
    return locate(resolve_reference(recorded, checkpoint)) if recorded else checkpoint


def open_learner(params: Params, checkpoint: Path) -> Learner:
    """Loads a checkpoint for training: with a new adapter on a base, with its adapter and optimiser state otherwise.

    For ppo with its critic, or with a new one where the checkpoint has none.

    Raises:
        ArtifactError: the checkpoint's optimiser state or critic cannot be read.
        MismatchError: they belong to other weights.
    """
    policy = open_policy(params, checkpoint, trainable=True)
    if not policy.has_adapter:
        policy.add_lora(params.policy.lora, derive_seed(params.seed, "lora"))
    critic = None
    if params.update.algo == "ppo":
        critic = Critic(policy.config.llama.hidden_size, derive_seed(params.seed, "critic"))
    learner = Learner(policy, params.update, critic)
    if (checkpoint / OPTIMIZER).exists():
        learner.load_optimizer_state(_load(checkpoint / OPTIMIZER))
    if learner.actor_critic is not None and (checkpoint / CRITIC).exists():
        learner.actor_critic.restore(_load(checkpoint / CRITIC))
    return learner


def _load(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        reason = str(error).splitlines()[0]
        raise ArtifactError(f"{path} cannot be read ({reason}); make or copy the checkpoint again") from None


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
        MismatchError: groups sampled by several policies, or by another one than `checkpoint`, and
            `update.max_off_policy_kl` is 0 or they are farther from it than that; groups that no policy sampled.
    """
    pairs = [open_pair(handle.path) for handle in handles]
    sampled_by = _sampled_by([group for group, _ in pairs])
    off_policy = params.update.max_off_policy_kl > 0
    if len(sampled_by) > 1 and not (off_policy and checkpoint):
        raise MismatchError(
            f"the groups were sampled by {len(sampled_by)} different checkpoints; pass those of one `tgrpo rollout` at a time, "
            "or name the one to update by --checkpoint and set update.max_off_policy_kl, in nats a token"
        )
    first_group = pairs[0][0]
    checkpoint = checkpoint or resolve_reference(first_group.attrs.inputs["checkpoint"], first_group.path)
    params, checkpoint = open_checkpoint(params, checkpoint)
    manifest = read_checkpoint(checkpoint)
    found = digest_of(checkpoint)
    for digest, sampler in sampled_by.items():
        if digest == found:
            continue
        if not off_policy:
            raise MismatchError(
                f"{checkpoint} (digest {found[:12]}) is not the checkpoint that sampled {first_group.path} "
                f"(digest {digest[:12]}); leave --checkpoint out, sample again with it, or set update.max_off_policy_kl"
            )
        _refuse_other_base(checkpoint, found, manifest, sampler, digest)
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
        groups=[group for group, _ in pairs],
        seed=params.seed,
        params=params,
        inputs=update_inputs([handle.path for handle in handles], out),
        overwrite=overwrite,
    )


def _sampled_by(groups: Sequence[Group]) -> dict[str, Path]:
    """Where the checkpoints that sampled the groups lay then, by digest."""
    found = {}
    for group in groups:
        recorded = group.attrs.inputs.get("checkpoint")
        if recorded is None:
            raise MismatchError(
                f"{group.path} was not sampled by a policy (demonstrations?); sample one with `tgrpo rollout`"
            )
        found[recorded["digest"]] = resolve_reference(recorded, group.path)
    return found


def _refuse_other_base(checkpoint: Path, found: str, manifest: Manifest, sampler: Path, digest: str) -> None:
    """Raises MismatchError when the checkpoint that sampled stands on another base than the one to update.

    Where it is gone, how far the two policies are apart still decides (`update.max_off_policy_kl`).
    """
    if not sampler.exists() or digest_of(sampler) != digest:
        return
    of_sampler = read_checkpoint(sampler).inputs.get("base", {"digest": digest})["digest"]
    own = manifest.inputs.get("base", {"digest": found})["digest"]
    if of_sampler != own:
        raise MismatchError(
            f"{sampler}, which sampled the groups, stands on another base (digest {of_sampler[:12]}) than {checkpoint} "
            f"(digest {own[:12]}), so their KL to the reference would be another's; update a checkpoint of its own base"
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
