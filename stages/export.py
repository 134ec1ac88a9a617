"""`tgrpo export`: an adapter checkpoint -> a full checkpoint in the published layout, shown to act as the adapter does.

A merge that went wrong looks like any other file and costs all success. So the two act on frames that rollouts stored,
greedily and sampled with the same draws, before anything appears at its place.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from stages.describe import describe
from stages.errors import ArtifactError, MismatchError, UsageError
from stages.params import Params
from stages.policy.checkpoint import base_of, is_adapter
from stages.policy.merging import merge
from stages.policy.weights import StoredWeights
from stages.reporting import Reporter, Silent
from stages.seeding import derive_seed
from stages.store.advantages import open_advantages
from stages.store.artifacts import atomic_directory, refuse_existing
from stages.store.groups import open_group
from stages.store.handles import Handle
from stages.store.provenance import Manifest, reference, resolve_reference, write_manifest
from stages.workspace import next_path, open_checkpoint, open_policy, read_checkpoint

if TYPE_CHECKING:
    from stages.policy.policy import VLAPolicy

FRAMES = 64  # decisions compared: 448 tokens each way
BATCH = 8
# Where nothing is rounded, all tokens must be equal. Where weights are, bfloat16 moves logits by some tenths, and OpenVLA's
# own code then agrees with itself on about 97% of tokens.
LEAST_EQUAL = 0.9
# Equal tokens alone would let a lost adapter pass that changes few of them. So the log-probs of the merged checkpoint may be
# off by no more than a part of what the adapter changes, or by the noise of float32.
LOST_EXACT, LOST_ROUNDED = 0.02, 0.5
NOISE = 5e-5  # nats


@dataclass(frozen=True)
class Frames:
    """B stored observations of one task."""

    image: NDArray[np.uint8]  # (B, H, W, 3)
    proprio: NDArray[np.float32]  # (B, 8)
    task: str
    instruction: str
    temperature: float  # that they were sampled at; 1 where that was greedily

    def __len__(self) -> int:
        return len(self.image)


@dataclass(frozen=True)
class Tokens:
    """What a policy did on some frames."""

    greedy: NDArray[np.int64]  # (B, 7)
    sampled: NDArray[np.int64]  # (B, 7)
    gap: NDArray[np.float64]  # (B, 7) from the best to the second-best token of its sequence, nats
    log_prob: NDArray[np.float64]  # (B, 7) of the tokens it was asked to score, nats
    base_log_prob: NDArray[np.float64]  # (B, 7) of these, its adapter switched off; the same where there is none


@dataclass(frozen=True)
class Agreement:
    """How two policies' tokens compare. After a token that differs, the later ones of its action have other inputs."""

    frames: int
    tokens: int  # greedy and sampled together
    greedy_equal: int
    sampled_equal: int
    exact: bool  # whether all had to be equal
    log_prob_difference: float  # mean over the first policy's greedy tokens, nats
    adapter_effect: float  # the same between the first policy and its base
    usual_gap: float  # median gap of all greedy tokens, nats
    differing_gap: float | None  # median gap at the first greedy token of a frame that differs

    @property
    def holds(self) -> bool:
        """Whether the second policy stands for the first."""
        equal = self.greedy_equal + self.sampled_equal
        lost = max(NOISE, self.adapter_effect * (LOST_EXACT if self.exact else LOST_ROUNDED))
        return equal >= self.tokens * (1.0 if self.exact else LEAST_EQUAL) and self.log_prob_difference <= lost

    def line(self) -> str:
        half = self.tokens // 2
        gaps = f"gap of best to second-best token {self.usual_gap:.3g} nats in the median"
        if self.differing_gap is not None:
            gaps += f", {self.differing_gap:.3g} where greedy tokens first differ"
        return (
            f"{self.greedy_equal}/{half} greedy and {self.sampled_equal}/{half} sampled tokens equal on {self.frames} "
            f"frames, log-probs {self.log_prob_difference:.2g} nats apart in the mean where the adapter changes them by "
            f"{self.adapter_effect:.2g}; {gaps}"
        )


def export(
    params: Params,
    checkpoint: Path,
    frames: Sequence[Path] = (),
    out: Path | None = None,
    reporter: Reporter | None = None,
    overwrite: bool = False,
) -> Handle:
    """Merges an adapter checkpoint into its base and compares the two on stored frames; nothing is left when they differ.

    Args:
        frames: groups to take frames from; none takes those that the checkpoint was trained on.
        out: the new checkpoint's folder; None numbers it under data/exports.

    Raises:
        UsageError: the checkpoint is a base, or there are no frames.
        MismatchError: the merged checkpoint does not act as the adapter does.
        ArtifactError, TgrpoError: see `open_policy` and `merge`.
    """
    reporter = reporter or Silent()
    out = out or next_path("exports")
    refuse_existing(out, overwrite)
    params, checkpoint = open_checkpoint(params, checkpoint)
    manifest = read_checkpoint(checkpoint)
    if not is_adapter(checkpoint):
        raise UsageError(f"{checkpoint} is a whole model already; export the checkpoint of an update")
    base = base_of(checkpoint)
    seen = gather_frames(frames or trained_on(checkpoint, manifest), params.seed)
    params = params.model_copy(update={"task": seen.task})  # whose suite chooses the statistics of actions
    # Only where no weight was rounded can every token be asked to be equal.
    exact = StoredWeights(base).dtype == torch.float32 and params.policy.dtype != "bfloat16"
    before = _act(params, checkpoint, seen)
    with atomic_directory(out, overwrite=overwrite) as folder:
        changed = merge(base, checkpoint, folder)
        details = {**manifest.details, "merged_tensors": changed}
        write_manifest(folder, _manifest(params, checkpoint, out, details))
        agreement = compare(before, _act(params, folder, seen, before.greedy), exact)
        reporter.note(agreement.line())
        refuse_disagreement(checkpoint, agreement)
        write_manifest(folder, _manifest(params, checkpoint, out, {**details, "agreement": asdict(agreement)}))
    return describe(out)


def _manifest(params: Params, checkpoint: Path, out: Path, details: dict[str, object]) -> Manifest:
    return Manifest(
        kind="checkpoint",
        params=params.model_dump(include={"policy"}),
        seed=params.seed,
        inputs={"parent": reference(checkpoint, out)},
        details=details,
    )


def trained_on(checkpoint: Path, manifest: Manifest) -> list[Path]:
    """The groups that an update learnt from, by way of its advantages; none when they are not there any more."""
    groups = []
    for name, recorded in manifest.inputs.items():
        if name.startswith("advantages"):
            try:
                advantages = resolve_reference(recorded, checkpoint)
                group = resolve_reference(open_advantages(advantages).attrs.inputs["group"], advantages)
            except ArtifactError:
                continue
            if group.exists():
                groups.append(group)
    return groups


def gather_frames(paths: Sequence[Path], seed: int) -> Frames:
    """Up to `FRAMES` decisions of groups of one task, drawn evenly over all that were taken.

    Raises:
        UsageError: no groups, or groups of several tasks.
    """
    if not paths:
        raise UsageError(
            "the groups that this checkpoint was trained on are not there (any more), so there are no frames to compare the "
            "merged checkpoint on; name a group with --frames"
        )
    groups = [open_group(path) for path in paths]
    first = groups[0].attrs
    for path, group in zip(paths, groups, strict=True):
        if group.attrs.task != first.task:
            raise UsageError(
                f"{path} is of {group.attrs.task}, but {paths[0]} of {first.task}; name groups of one task with --frames"
            )
    taken = [np.argwhere(group["mask"][:]) for group in groups]
    rows = np.concatenate([np.full(len(at), index) for index, at in enumerate(taken)])
    drawn = np.random.default_rng(derive_seed(seed, "export")).permutation(len(rows))[:FRAMES]
    image, proprio = [], []
    for index, group in enumerate(groups):
        here = np.concatenate(taken)[drawn[rows[drawn] == index]]
        for trajectory, step in here:
            image.append(group["image"][int(trajectory), int(step)])
            proprio.append(group["proprio"][int(trajectory), int(step)])
    return Frames(np.stack(image), np.stack(proprio), first.task, first.instruction, first.temperature or 1.0)


def _act(params: Params, checkpoint: Path, frames: Frames, scored: NDArray[np.int64] | None = None) -> Tokens:
    return choose(open_policy(params, checkpoint), frames, params.seed, scored)


def choose(policy: "VLAPolicy", frames: Frames, seed: int, scored: NDArray[np.int64] | None = None) -> Tokens:
    """Acts on every frame greedily and, with draws that depend on the seed alone, sampled.

    Args:
        scored: (B, 7) greedy tokens whose log-probs and gaps are wanted; None takes the policy's own.
    """
    generator = torch.Generator().manual_seed(derive_seed(seed, "export", "draws"))
    parts: list[tuple[NDArray, ...]] = []
    for start in range(0, len(frames), BATCH):
        rows = slice(start, start + BATCH)
        images, proprio = policy.prepare(frames.image[rows]), frames.proprio[rows]
        greedy = policy.act(images, proprio, frames.instruction, 0.0).tokens
        sampled = policy.act(images, proprio, frames.instruction, frames.temperature, generator).tokens
        wanted = greedy if scored is None else scored[rows]
        with torch.no_grad():
            scores = policy.log_prob(images, proprio, frames.instruction, wanted)
            base = scores
            if policy.has_adapter:
                with policy.reference():
                    base = policy.log_prob(images, proprio, frames.instruction, wanted)
        best = scores.log_probs_all.topk(2).values.double().cpu().numpy()
        log_probs = (each.log_prob.double().cpu().numpy() for each in (scores, base))
        parts.append((greedy, sampled, best[..., 0] - best[..., 1], *log_probs))
    return Tokens(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def compare(before: Tokens, after: Tokens, exact: bool) -> Agreement:
    """Counts the equal tokens; the gaps are those of `before`."""
    differs = before.greedy != after.greedy
    frames = differs.any(1)
    first = before.gap[frames, differs[frames].argmax(1)]
    return Agreement(
        frames=len(differs),
        tokens=2 * differs.size,
        greedy_equal=int((~differs).sum()),
        sampled_equal=int((before.sampled == after.sampled).sum()),
        exact=exact,
        log_prob_difference=float(np.abs(before.log_prob - after.log_prob).mean()),
        adapter_effect=float(np.abs(before.log_prob - before.base_log_prob).mean()),
        usual_gap=float(np.median(before.gap)),
        differing_gap=float(np.median(first)) if len(first) else None,
    )


def refuse_disagreement(checkpoint: Path, agreement: Agreement) -> None:
    """Raises MismatchError when the merged checkpoint does not stand for its adapter."""
    if agreement.holds:
        return
    if agreement.exact:
        raise MismatchError(
            f"merged, {checkpoint} does not act as it did: {agreement.line()}; expected all equal and {LOST_EXACT:.0%} of "
            "that change at most; nothing was written: keep the adapter"
        )
    raise MismatchError(
        f"merged, {checkpoint} does not act as it did: {agreement.line()}; expected {LEAST_EQUAL:.0%} equal and "
        f"{LOST_ROUNDED:.0%} of that change at most; nothing was written: keep the adapter, or a base in float32"
    )
