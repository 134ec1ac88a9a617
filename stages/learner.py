"""The learner: TGRPO's objective over decisions, in minibatches of one AdamW step and passes that fit the memory."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stages.algo.losses import LossStats, kl_exact, kl_k1, kl_k3, tgrpo_loss
from stages.decisions import Decisions
from stages.errors import MismatchError, ParamsError, TgrpoError
from stages.params import UpdateParams
from stages.policy.memory import batch_cost, free_bytes
from stages.reporting import Reporter, Silent
from stages.sim.memory import available_bytes

if TYPE_CHECKING:
    from stages.policy.policy import TokenScores, VLAPolicy

T = TypeVar("T")
References = Callable[[NDArray[np.int64]], Tensor | None]  # rows -> what the KL compares these decisions with

GIB = 2**30
KEPT_REFERENCE = GIB  # bytes of the reference's log-probs kept in host memory; more are computed again when needed
# Decisions scored together without gradients, and checked before the first step, where minibatches have fewer.
AHEAD = 32

# How far recorded log-probs may lie from those of the same weights and images scored again, in nats: on average, and at
# most. Acting adds in another order (a cache, merged or joined weights). In float32 that shows in the fifth digit; in
# bfloat16, whose numbers have 8 bits, one rare token may be off by several tenths, but not many.
TOLERANCE = {torch.float32: (1e-3, 1e-3), torch.bfloat16: (0.1, 1.0)}


class Learner:
    """The policy's trainable weights and their AdamW state, carried from iteration to iteration."""

    def __init__(self, policy: "VLAPolicy", params: UpdateParams) -> None:
        """Takes up a policy whose adapter is trainable.

        Raises:
            ParamsError: an adapter with dropout, or a policy in another dtype than float32 and bfloat16.
        """
        if policy.model.dtype not in TOLERANCE:
            raise ParamsError(
                f"the policy is loaded in {policy.model.dtype}, whose gradients underflow; set policy.dtype=bfloat16"
            )
        dropout = max((m.p for m in policy.model.modules() if isinstance(m, torch.nn.Dropout)), default=0.0)
        if dropout:
            raise ParamsError(
                f"the adapter has dropout {dropout:g}, and the ratio of eq. 4 would compare two masks rather than two "
                "policies; set policy.lora.dropout to 0"
            )
        self.policy = policy
        self._params = params
        self._named = policy.trainable_parameters()
        self._optimizer = torch.optim.AdamW(
            [parameter for _, parameter in self._named],
            lr=params.lr,
            weight_decay=params.weight_decay,
            betas=(0.9, 0.999),
        )
        self._micro_batch = params.micro_batch  # decisions a pass; 0 until it is found

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

        A minibatch is cut into parts of at most `micro_batch` decisions whose gradients add up to its own, so memory
        bounds the parts and the result depends on them by rounding only; a minibatch in one part is computed as it is.

        Raises:
            MismatchError: the policy does not give the recorded log-probs back, so it is not the one that sampled.
            TgrpoError: the loss is not finite, or the memory does not hold one decision.
        """
        reporter = reporter or Silent()
        p = self._params
        generator = torch.Generator().manual_seed(seed)
        if isinstance(decisions.image, np.ndarray):
            decisions = replace(decisions, image=self.policy.prepare(decisions.image))  # once for all epochs
        self._micro_batch = self._micro_batch or self._fitting_micro_batch(decisions, reporter)
        reference = self._within_memory(partial(self._references, decisions), len(decisions), reporter)
        minibatches = -(-len(decisions) // p.minibatch)
        history: list[LossStats] = []
        grad_norms: list[float] = []
        started, done = time.perf_counter(), 0
        with reporter.bar("update", p.epochs * minibatches) as advance:
            for _ in range(p.epochs):
                order = torch.randperm(len(decisions), generator=generator).numpy()
                for rows in np.array_split(order, minibatches):
                    stats, log_prob = self._within_memory(
                        partial(self._accumulate, decisions, rows, reference), len(rows), reporter
                    )
                    if not history:
                        more = order[len(rows) : AHEAD]
                        log_prob = torch.cat([log_prob, self._log_probs(decisions, more)])
                        self._check_on_policy(log_prob, decisions.log_prob[order[: len(log_prob)]])
                    if not np.isfinite(stats.loss):
                        raise TgrpoError(
                            f"the loss became {stats.loss} after {len(history)} updates; the last checkpoint is "
                            "untouched: lower update.lr or update.max_grad_norm"
                        )
                    norm = torch.nn.utils.clip_grad_norm_([q for _, q in self._named], p.max_grad_norm)
                    self._optimizer.step()
                    history.append(stats)
                    grad_norms.append(norm.item())
                    done += len(rows)
                    speed = done / (time.perf_counter() - started)
                    advance(1, f"kl {stats.kl:.4f}, clip fraction {stats.clip_fraction:.2f}, {speed:.0f} decisions/s")
        means = {f.name: float(np.mean([getattr(stats, f.name) for stats in history])) for f in fields(LossStats)}
        return means | {"grad_norm": float(np.mean(grad_norms)), "updates": float(len(history))}

    def _accumulate(
        self, decisions: Decisions, rows: NDArray[np.int64], reference: References
    ) -> tuple[LossStats, Tensor]:
        """Leaves the gradient of one minibatch in the parameters; returns its statistics and log-probs (B, 7)."""
        self._optimizer.zero_grad(set_to_none=True)
        parts = self._parts(rows)
        stats, log_probs = [], []
        for part in parts:
            loss, of_part, log_prob = self._loss(decisions, part, reference)
            (loss * (len(part) / len(rows))).backward()
            stats.append(of_part)
            log_probs.append(log_prob)
        return LossStats.pooled(stats, [len(part) for part in parts]), torch.cat(log_probs)

    def _loss(
        self, decisions: Decisions, rows: NDArray[np.int64], reference: References
    ) -> tuple[Tensor, LossStats, Tensor]:
        p = self._params
        other = reference(rows)
        scores = self._scores(decisions, rows)
        loss, stats = tgrpo_loss(
            scores.log_prob,
            self._tensor(decisions.log_prob[rows]),
            self._tensor(decisions.advantage[rows]),
            self._tensor(decisions.weight[rows]),
            self._kl(scores, other),
            scores.entropy,
            epsilon=p.clip,
            beta=p.beta,
            per=p.ratio,
        )
        return loss, stats, scores.log_prob.detach().cpu()

    def _parts(self, rows: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        """Rows in parts of at most a micro-batch, as equal as can be, so that none takes more memory than it must."""
        return np.array_split(rows, -(-len(rows) // self._micro_batch)) if len(rows) else []

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
    def _log_probs(self, decisions: Decisions, rows: NDArray[np.int64]) -> Tensor:
        parts = [self._scores(decisions, part).log_prob.cpu() for part in self._parts(rows)]
        return torch.cat(parts) if parts else torch.empty(0, decisions.log_prob.shape[1])

    def _references(self, decisions: Decisions) -> References:
        """What the KL compares with: the reference's log-probs (B, 7), or of all tokens (B, 7, V) for the exact KL.

        They are computed once, before the first step, and kept in host memory; over a whole vocabulary they are too large
        for that, and are computed again for every pass.
        """
        if self._params.beta == 0:
            return lambda rows: None
        parts = []
        for rows in self._parts(np.arange(len(decisions))):
            parts.append(self._reference_scores(decisions, rows).cpu())
            if parts[0][0].nbytes * len(decisions) > KEPT_REFERENCE:
                return partial(self._reference_scores, decisions)
        kept = torch.cat(parts)
        return lambda rows: kept[torch.from_numpy(rows)].to(self.policy.device)

    @torch.no_grad()
    def _reference_scores(self, decisions: Decisions, rows: NDArray[np.int64]) -> Tensor:
        with self.policy.reference():
            scores = self._scores(decisions, rows)
        return scores.log_probs_all if self._params.kl == "exact" else scores.log_prob

    def _kl(self, scores: "TokenScores", other: Tensor | None) -> Tensor:
        if other is None:
            return torch.zeros_like(scores.log_prob)
        if self._params.kl == "exact":
            return kl_exact(scores.log_probs_all, other)
        return (kl_k1 if self._params.kl == "k1" else kl_k3)(scores.log_prob, other)

    def _check_on_policy(self, log_prob: Tensor, recorded: NDArray[np.float32]) -> None:
        difference = (log_prob - torch.from_numpy(recorded)).abs()
        mean, worst = difference.mean().item(), difference.max().item()
        mean_allowed, worst_allowed = TOLERANCE[self.policy.model.dtype]
        if not (mean <= mean_allowed and worst <= worst_allowed):
            raise MismatchError(
                f"the checkpoint gives other log-probs than the rollout recorded ({mean:.2g} nats on average and {worst:.2g} "
                f"at most over {len(recorded)} decisions; allowed {mean_allowed:g} and {worst_allowed:g}): another "
                "checkpoint sampled, or policy.center_crop, policy.sampling, policy.dtype or the image pipeline differ; "
                "update with what sampled the group, or sample again"
            )

    def _fitting_micro_batch(self, decisions: Decisions, reporter: Reporter) -> int:
        """As many decisions as one pass can take within `memory_gb`, by measuring passes over one and over two."""
        sample = decisions.take(np.arange(2) % len(decisions))
        self._micro_batch = 2
        try:
            with self._unchanged():
                reference = self._references(sample)
                limit = self._memory_limit()
                cost = batch_cost(lambda n: self._accumulate(sample, np.arange(n), reference), self.policy.device)
        except torch.OutOfMemoryError:
            return 1  # which then fits, or is refused
        fits = cost.largest(limit)
        if fits == 0:
            raise TgrpoError(
                f"one decision takes {cost.one / GIB:.3g} GiB to learn from, of {limit / GIB:.3g} allowed; {ROOM}"
            )
        if fits < min(self._params.minibatch, len(decisions)):
            reporter.note(
                f"update: {fits} decisions a pass ({cost.one / GIB:.3g} GiB for one, {cost.each / GIB:.3g} for each further, "
                f"of {limit / GIB:.3g} allowed)"
            )
        return min(fits, max(self._params.minibatch, AHEAD))

    def _memory_limit(self) -> int:
        """Bytes that a pass may take: `memory_gb`, or nine tenths of what is free once AdamW has its two moments."""
        p, device = self._params, self.policy.device
        if p.memory_gb is not None:
            return int(p.memory_gb * GIB)
        moments = 0 if self._optimizer.state else 2 * sum(q.nbytes for _, q in self._named)
        return int(0.9 * ((free_bytes(device) if device.type == "cuda" else available_bytes()) - moments))

    @contextmanager
    def _unchanged(self) -> Iterator[None]:
        """Puts gradients and torch's random state back as they were."""
        device, gradients = self.policy.device, [q.grad for _, q in self._named]
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            try:
                yield
            finally:
                for (_, parameter), gradient in zip(self._named, gradients, strict=True):
                    parameter.grad = gradient

    def _within_memory(self, run: Callable[[], T], rows: int, reporter: Reporter) -> T:
        """Runs over so many rows, again with half the micro-batch for as long as the device's memory does not hold it.

        Raises:
            TgrpoError: it does not hold one decision.
        """
        while True:
            try:
                return run()
            except torch.OutOfMemoryError:
                pass  # what the pass held is free only after this block
            held = min(self._micro_batch, rows)
            if held == 1:
                raise TgrpoError(f"{self.policy.device} has no memory left to learn from one decision; {ROOM}")
            self._micro_batch = held // 2
            torch.cuda.empty_cache()
            reporter.note(
                f"update: the memory of {self.policy.device} did not hold the pass; going on with {self._micro_batch} "
                "decisions a pass (set update.micro_batch or update.memory_gb lower to start there)"
            )


ROOM = (
    "set policy.gradient_checkpointing=true or policy.dtype=bfloat16, take a smaller policy.lora.rank, raise "
    "update.memory_gb, or free memory"
)
