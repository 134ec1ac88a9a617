"""`tgrpo update`: a checkpoint, its groups and their advantages -> the next checkpoint.

One iteration of Algorithm 1's second half: minibatches of decisions from all groups, the policy ratio against what was
sampled (clipped as in eq. 3, or plain as in eq. 9 with `clip: 0`), a KL to the reference policy (the adapter switched
off), AdamW on the LoRA weights. The paper updates after every time step; here a shuffled minibatch takes its place:
the same objective, with less correlated updates.
"""

import csv
import os
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor

from stages.algo.losses import LossStats, decision_weights, kl_exact, kl_k1, kl_k3, tgrpo_loss
from stages.describe import describe
from stages.errors import MismatchError, TgrpoError
from stages.params import Params, UpdateParams
from stages.reporting import Reporter, Silent
from stages.seeding import derive_seed
from stages.store.advantages import Advantages, open_advantages
from stages.store.artifacts import atomic_directory, digest_of, refuse_existing
from stages.store.groups import Group, open_group
from stages.store.handles import Handle
from stages.store.provenance import Manifest, reference, resolve_reference, write_manifest
from stages.workspace import learning_threads, next_path, open_policy, read_checkpoint

if TYPE_CHECKING:
    from stages.policy.policy import TokenScores, VLAPolicy

OPTIMIZER = "optimizer.safetensors"
HISTORY = "history.csv"
ON_POLICY_TOLERANCE = 1e-3  # nats; float32 log-probs of the same weights and images agree far better


@dataclass(frozen=True)
class Decisions:
    """The decisions of all groups that count, flattened to one axis B."""

    image: NDArray[np.uint8]  # (B, H, W, 3)
    proprio: NDArray[np.float32]  # (B, 8)
    action_token: NDArray[np.int64]  # (B, 7)
    log_prob: NDArray[np.float32]  # (B, 7) as recorded
    advantage: NDArray[np.float32]  # (B,)
    weight: NDArray[np.float32]  # (B,) mean 1, see `decision_weights`
    instruction: str
    temperature: float

    def __len__(self) -> int:
        return len(self.advantage)


def gather_decisions(pairs: Sequence[tuple[Group, Advantages]]) -> Decisions | None:
    """Collects the valid decisions of every group in use; None when no group is (all returns equal)."""
    used = [(group, advantages) for group, advantages in pairs if advantages.attrs.used]
    if not used:
        return None
    masks = [advantages.mask for _, advantages in used]
    weights = np.split(
        decision_weights(np.concatenate([mask.sum(1) for mask in masks])),
        np.cumsum([len(mask) for mask in masks])[:-1],
    )

    def column(name: str) -> NDArray:
        return np.concatenate([group[name][:][mask] for (group, _), mask in zip(used, masks, strict=True)])

    return Decisions(
        image=column("image"),
        proprio=column("proprio"),
        action_token=column("action_token").astype(np.int64),
        log_prob=column("log_prob"),
        advantage=np.concatenate(
            [advantages.advantage[mask] for (_, advantages), mask in zip(used, masks, strict=True)]
        ).astype(np.float32),
        weight=np.concatenate(
            [np.broadcast_to(w[:, None], mask.shape)[mask] for w, mask in zip(weights, masks, strict=True)]
        ).astype(np.float32),
        instruction=used[0][0].attrs.instruction,
        temperature=used[0][0].attrs.temperature,
    )


class Learner:
    """The policy's trainable weights and their AdamW state, carried from iteration to iteration."""

    def __init__(self, policy: "VLAPolicy", params: UpdateParams) -> None:
        self.policy = policy
        self._params = params
        self._named = policy.trainable_parameters()
        self._optimizer = torch.optim.AdamW(
            [parameter for _, parameter in self._named],
            lr=params.lr,
            weight_decay=params.weight_decay,
            betas=(0.9, 0.999),
        )

    def optimizer_state(self) -> dict[str, Tensor]:
        """AdamW's moments by parameter name, on the CPU, so that they can be stored as plain tensors."""
        state = {}
        for name, parameter in self._named:
            for key, value in self._optimizer.state.get(parameter, {}).items():
                state[f"{name}/{key}"] = value.detach().to("cpu", copy=True).contiguous()
        return state

    def load_optimizer_state(self, state: dict[str, Tensor]) -> None:
        """Takes up what `optimizer_state` gave.

        Raises:
            MismatchError: the state belongs to other weights.
        """
        by_name = dict(self._named)
        for key, value in state.items():
            name, _, entry = key.rpartition("/")
            if name not in by_name:
                raise MismatchError(f"the optimiser state speaks of {name}, which this policy does not train")
            # AdamW keeps its step count on the CPU; only the moments live beside the weights.
            device = value.device if entry == "step" else by_name[name].device
            self._optimizer.state[by_name[name]][entry] = value.to(device, copy=True)

    def update(self, decisions: Decisions, seed: int, reporter: Reporter | None = None) -> dict[str, float]:
        """Takes `epochs` passes over the decisions in minibatches; returns the means of the `LossStats`.

        Raises:
            MismatchError: the policy does not give the recorded log-probs back, so it is not the one that sampled.
            TgrpoError: the loss is not finite.
        """
        reporter = reporter or Silent()
        p = self._params
        generator = torch.Generator().manual_seed(seed)
        reference = self._reference_scores(decisions)
        minibatches = -(-len(decisions) // p.minibatch)
        history: list[LossStats] = []
        grad_norms: list[float] = []
        with reporter.bar("update", p.epochs * minibatches) as advance:
            for _ in range(p.epochs):
                order = torch.randperm(len(decisions), generator=generator).numpy()
                for rows in np.array_split(order, minibatches):
                    scores = self._scores(decisions, rows)
                    old = self._tensor(decisions.log_prob[rows])
                    if not history:
                        _check_on_policy(scores.log_prob, old)
                    loss, stats = tgrpo_loss(
                        scores.log_prob,
                        old,
                        self._tensor(decisions.advantage[rows]),
                        self._tensor(decisions.weight[rows]),
                        self._kl(scores, reference, rows),
                        scores.entropy,
                        epsilon=p.clip,
                        beta=p.beta,
                        per=p.ratio,
                    )
                    if not torch.isfinite(loss):
                        raise TgrpoError(
                            f"the loss became {loss.item()} after {len(history)} updates; the last checkpoint is "
                            "untouched: lower update.lr or update.max_grad_norm"
                        )
                    self._optimizer.zero_grad(set_to_none=True)
                    loss.backward()
                    norm = torch.nn.utils.clip_grad_norm_([q for _, q in self._named], p.max_grad_norm)
                    self._optimizer.step()
                    history.append(stats)
                    grad_norms.append(norm.item())
                    advance(1, f"kl {stats.kl:.4f}, clip fraction {stats.clip_fraction:.2f}")
        means = {f.name: float(np.mean([getattr(stats, f.name) for stats in history])) for f in fields(LossStats)}
        return means | {"grad_norm": float(np.mean(grad_norms)), "updates": float(len(history))}

    def _tensor(self, array: NDArray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.policy.device)

    def _scores(self, decisions: Decisions, rows: NDArray[np.int64]) -> "TokenScores":
        return self.policy.log_prob(
            decisions.image[rows],
            decisions.proprio[rows],
            decisions.instruction,
            decisions.action_token[rows],
            decisions.temperature,
        )

    @torch.no_grad()
    def _reference_scores(self, decisions: Decisions) -> Tensor | None:
        """What the KL compares with: the reference's log-probs (B, 7), or of all bins (B, 7, 256) for the exact KL."""
        p = self._params
        if p.beta == 0:
            return None
        field = "log_probs_all" if p.kl == "exact" else "log_prob"
        with self.policy.reference():
            parts = [
                getattr(self._scores(decisions, rows), field)
                for rows in np.array_split(np.arange(len(decisions)), -(-len(decisions) // p.minibatch))
            ]
        return torch.cat(parts)

    def _kl(self, scores: "TokenScores", reference: Tensor | None, rows: NDArray[np.int64]) -> Tensor:
        if reference is None:
            return torch.zeros_like(scores.log_prob)
        other = reference[torch.from_numpy(rows).to(reference.device)]
        if self._params.kl == "exact":
            return kl_exact(scores.log_probs_all, other)
        return (kl_k1 if self._params.kl == "k1" else kl_k3)(scores.log_prob, other)


def _check_on_policy(log_prob: Tensor, recorded: Tensor) -> None:
    worst = (log_prob.detach() - recorded).abs().max().item()
    if not worst <= ON_POLICY_TOLERANCE:
        raise MismatchError(
            f"the checkpoint gives other log-probs than the rollout recorded (largest difference {worst:.2g} nats, "
            f"allowed {ON_POLICY_TOLERANCE:g}); update the checkpoint that sampled the group, or sample again"
        )


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

    When no group is of use (all returns equal), the weights stay as they are.
    """
    decisions = gather_decisions(pairs)
    if decisions is None:
        (reporter or Silent()).note(f"iteration {iteration}: all groups have equal returns, nothing to learn from")
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
    seed: int,
    params: Params,
    inputs: dict[str, dict[str, str]],
    overwrite: bool = False,
) -> Handle:
    """Writes the adapter, AdamW's state, the run's history so far and where it all comes from."""
    with atomic_directory(out, overwrite=overwrite) as folder:
        learner.policy.save_adapter(folder, os.path.relpath(base.absolute(), out.absolute()))
        save_file(learner.optimizer_state(), folder / OPTIMIZER)
        write_history(folder / HISTORY, history)
        write_manifest(
            folder,
            Manifest(
                kind="checkpoint",
                params=params.model_dump(include={"policy", "update"}),
                seed=seed,
                inputs={"parent": reference(parent, out), "base": reference(base, out), **inputs},
                details={**parent_manifest.details, "iteration": int(history[-1]["iteration"])},
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
    return resolve_reference(recorded, checkpoint) if recorded else checkpoint


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
