"""The learner: an algorithm's objective over decisions, in optimiser updates and passes that fit the memory.

`recipe` says what is minimised, `batches` in which portions. All of them run through one loss, `policy_loss`; PPO's critic
(`actor_critic`) and GRAPE's pairs (`preferences`) only give it other advantages.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stages.actor_critic import ActorCritic
from stages.algo.kl import kl_exact, kl_k1, kl_k3
from stages.algo.losses import LossStats, policy_loss
from stages.batches import Batch, batches
from stages.decisions import Decisions
from stages.errors import DivergedError, MismatchError, ParamsError, TgrpoError
from stages.params import UpdateParams
from stages.policy.critic import Critic
from stages.policy.memory import batch_cost, free_bytes
from stages.preferences import Preferences
from stages.recipe import learning_rate, recipe_of, remarks
from stages.reporting import Reporter, Silent
from stages.sim.memory import available_bytes
from stages.tally import Tally

if TYPE_CHECKING:
    from stages.policy.policy import TokenScores, VLAPolicy

T = TypeVar("T")
References = Callable[[NDArray[np.int64]], Tensor | None]  # rows -> what the KL compares these decisions with

GIB = 2**30
KEPT_REFERENCE = GIB  # bytes of the reference's log-probs kept in host memory; more are computed again when needed
# Decisions scored together without gradients, and checked before the first step, where minibatches have fewer.
AHEAD = 32
AFTER = 64  # decisions, evenly spaced, by which the policy is judged once the update is done

# How far recorded log-probs may lie from those of the same weights and images scored again, in nats: on average, and at
# most. Acting adds in another order (a cache, merged or joined weights). In float32 that shows in the fifth digit; in
# bfloat16, whose numbers have 8 bits, one rare token may be off by several tenths, but not many.
TOLERANCE = {torch.float32: (1e-3, 1e-3), torch.bfloat16: (0.1, 1.0)}


class Learner:
    """The policy's trainable weights and their AdamW state, and PPO's critic, carried from iteration to iteration."""

    def __init__(self, policy: "VLAPolicy", params: UpdateParams, critic: Critic | None = None) -> None:
        """Takes up a policy whose adapter is trainable, and for `update.algo=ppo` a critic.

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
            lr=learning_rate(params),
            weight_decay=params.weight_decay,
            betas=(0.9, 0.999),
        )
        if (params.algo == "ppo") != (critic is not None):
            raise ValueError("a critic is for ppo, and ppo needs one")
        self.actor_critic = ActorCritic(critic.to(policy.device), params) if critic is not None else None
        self._recipe = recipe_of(params)
        self._remarks = remarks(params)  # until they are said
        self._micro_batch = params.micro_batch  # decisions a pass; 0 until it is found
        self._replays = True  # until the memory does not hold what graphs keep

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
        """Goes through the decisions as the recipe says; returns the `history.UPDATE_COLUMNS` that apply.

        A batch is cut into parts of at most `micro_batch` decisions whose gradients add up to its own, so memory bounds the
        parts and the result depends on them by rounding only; a batch in one part is computed as it is.

        Raises:
            MismatchError: the policy does not give the recorded log-probs back, so it is not the one that sampled; or with
                `max_off_policy_kl`, it is farther than that from the one that did.
            DivergedError: the loss or a gradient is not finite.
            TgrpoError: the memory does not hold one decision.
        """
        reporter = reporter or Silent()
        while self._remarks:
            reporter.note(self._remarks.pop(0))
        if isinstance(decisions.image, np.ndarray):
            decisions = replace(decisions, image=self.policy.prepare(decisions.image))  # once for all passes
        self._micro_batch = self._micro_batch or self._fitting_micro_batch(decisions, reporter)
        self.policy.replay_learning(self._replays)
        decisions, checked = self._weighed(decisions, reporter)
        reference = self._within_memory(partial(self._references, decisions), len(decisions), reporter)
        preferences = self._preferences(decisions, reporter)
        if preferences is not None:
            decisions = preferences.decisions
        plan = self._plan(decisions, seed)
        tally = Tally(self._recipe.per)
        started = time.perf_counter()
        with reporter.bar("update", len(plan)) as advance:
            for batch in plan:
                rows, weighed = batch.rows, decisions
                if preferences is not None:
                    present = self._within_memory(partial(self._log_probs, decisions, rows), len(rows), reporter)
                    weighed = preferences.weigh(rows, present.sum(dim=1).numpy())
                stats, log_prob = self._within_memory(
                    partial(self._accumulate, weighed, batch, reference), len(rows), reporter
                )
                if not checked:
                    order = np.concatenate([other.rows for other in plan])[: len(decisions)]
                    ahead = torch.cat([log_prob, self._log_probs(decisions, order[len(rows) : AHEAD])])
                    self._check_on_policy(ahead, decisions.log_prob[order[: len(ahead)]])
                    checked = True
                if preferences is not None:
                    stats = replace(stats, loss=preferences.last.loss)
                tally.add(stats, self._step(stats.loss, tally.updates), log_prob, decisions.log_prob[rows])
                speed = tally.decisions / (time.perf_counter() - started)
                advance(1, f"kl {stats.kl:.4f}, clip fraction {stats.clip_fraction:.2f}, {speed:.0f} decisions/s")
        ended = self._within_memory(partial(self._judge, decisions, reference), len(decisions), reporter)
        self._refuse_divergence("KL to the reference", ended["kl_end"], tally.updates)
        found = tally.means() | ended
        if self._recipe.beta == 0:
            del found["kl"]
        if self.actor_critic is not None:
            found["explained_variance"] = self.actor_critic.explained_variance
        if preferences is not None:
            found["preference_accuracy"] = preferences.accuracy
        return found

    def _weighed(self, decisions: Decisions, reporter: Reporter) -> tuple[Decisions, bool]:
        """The decisions with a critic's advantages, where there is one; and whether it is known who sampled them."""
        if self._params.max_off_policy_kl == 0 and self.actor_critic is None:
            return decisions, False
        every = np.arange(len(decisions))
        log_prob, state = self._within_memory(partial(self._survey, decisions, every), len(every), reporter)
        self._check_origin(log_prob, decisions)
        return (self.actor_critic.weigh(decisions, state) if self.actor_critic is not None else decisions), True

    def _preferences(self, decisions: Decisions, reporter: Reporter) -> Preferences | None:
        """The ranked pairs of GRAPE; None for every other algorithm."""
        if self._params.algo != "grape":
            return None
        of_reference = self._within_memory(partial(self._reference_log_prob, decisions), len(decisions), reporter)
        return Preferences(decisions, of_reference.sum(dim=1).numpy(), self._params.grape.beta)

    def _plan(self, decisions: Decisions, seed: int) -> list[Batch]:
        """The batches of all passes."""
        generator = torch.Generator().manual_seed(seed)
        of_passes = (
            batches(decisions, self._recipe.schedule, self._params.minibatch, generator)
            for _ in range(self._recipe.passes)
        )
        return [batch for of_pass in of_passes for batch in of_pass]

    def _step(self, loss: float, updates: int) -> float:
        """One optimiser step on the gradients that are there; returns the norm of the policy's before it is limited.

        Raises:
            DivergedError: the loss or a gradient is not finite.
        """
        self._refuse_divergence("loss", loss, updates)
        norm = torch.nn.utils.clip_grad_norm_([q for _, q in self._named], self._params.max_grad_norm).item()
        self._refuse_divergence("gradient", norm, updates)
        self._optimizer.step()
        if self.actor_critic is not None:
            self.actor_critic.step()
        return norm

    def _refuse_divergence(self, what: str, value: float, updates: int) -> None:
        if not np.isfinite(value):
            raise DivergedError(
                f"the {what} became {value} after {updates} updates; the last checkpoint is untouched: lower update.lr or "
                "update.max_grad_norm"
            )

    def _accumulate(self, decisions: Decisions, batch: Batch, reference: References) -> tuple[LossStats, Tensor]:
        """Leaves the gradient of one batch in the parameters; returns its statistics and log-probs (B, 7)."""
        self._optimizer.zero_grad(set_to_none=True)
        if self.actor_critic is not None:
            self.actor_critic.forget_gradients()
        parts = self._parts(batch.rows)
        stats, log_probs = [], []
        for part in parts:
            loss, of_part, log_prob = self._loss(decisions, part, reference)
            (loss * (batch.share * (len(part) / len(batch.rows)))).backward()
            stats.append(of_part)
            log_probs.append(log_prob)
        return LossStats.pooled(stats, [len(part) for part in parts]), torch.cat(log_probs)

    def _loss(
        self, decisions: Decisions, rows: NDArray[np.int64], reference: References
    ) -> tuple[Tensor, LossStats, Tensor]:
        other = reference(rows)
        scores = self._scores(decisions, rows)
        loss, stats = policy_loss(
            scores.log_prob,
            self._tensor(decisions.log_prob[rows]),
            self._tensor(decisions.advantage[rows]),
            self._tensor(decisions.weight[rows]),
            self._kl(scores, other),
            epsilon=self._recipe.epsilon,
            beta=self._recipe.beta,
            per=self._recipe.per,
            objective=self._recipe.objective,
        )
        if self.actor_critic is not None and self.actor_critic.ready:
            of_critic = self.actor_critic.loss(scores.state, rows)
            loss, stats = loss + of_critic, replace(stats, value_loss=of_critic.item())
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

    def _log_probs(self, decisions: Decisions, rows: NDArray[np.int64]) -> Tensor:
        return self._survey(decisions, rows)[0] if len(rows) else torch.empty(0, decisions.log_prob.shape[1])

    @torch.no_grad()
    def _survey(self, decisions: Decisions, rows: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Log-probs (B, 7) and states (B, hidden_size) under the present policy, on the CPU, without gradient."""
        scores = [self._scores(decisions, part) for part in self._parts(rows)]
        return torch.cat([s.log_prob.cpu() for s in scores]), torch.cat([s.state.cpu() for s in scores])

    def _references(self, decisions: Decisions) -> References:
        """What the KL compares with: the reference's log-probs (B, 7), or of all tokens (B, 7, V) for the exact KL.

        They are computed once, before the first step, and kept in host memory; over a whole vocabulary they are too large
        for that, and are computed again for every pass.
        """
        if self._recipe.beta == 0:
            return lambda rows: None
        parts = []
        for rows in self._parts(np.arange(len(decisions))):
            parts.append(self._reference_scores(decisions, rows).cpu())
            if parts[0][0].nbytes * len(decisions) > KEPT_REFERENCE:
                return partial(self._reference_scores, decisions)
        kept = torch.cat(parts)
        return lambda rows: kept[torch.from_numpy(rows)].to(self.policy.device)

    def _reference_scores(self, decisions: Decisions, rows: NDArray[np.int64]) -> Tensor:
        scores = self._of_reference(decisions, rows)
        return scores.log_probs_all if self._params.kl == "exact" else scores.log_prob

    def _reference_log_prob(self, decisions: Decisions) -> Tensor:
        """(B, 7) of the recorded tokens under the reference, on the CPU."""
        parts = self._parts(np.arange(len(decisions)))
        return torch.cat([self._of_reference(decisions, rows).log_prob.cpu() for rows in parts])

    @torch.no_grad()
    def _of_reference(self, decisions: Decisions, rows: NDArray[np.int64]) -> "TokenScores":
        with self.policy.reference():
            return self._scores(decisions, rows)

    def _kl(self, scores: "TokenScores", other: Tensor | None) -> Tensor:
        if other is None:
            return torch.zeros_like(scores.log_prob)
        if self._params.kl == "exact":
            return kl_exact(scores.log_probs_all, other)
        return (kl_k1 if self._params.kl == "k1" else kl_k3)(scores.log_prob, other)

    @torch.no_grad()
    def _judge(self, decisions: Decisions, reference: References) -> dict[str, float]:
        """Where the update ended: entropy and exact KL to the reference, nats a token, over `AFTER` decisions at most."""
        exact = self._recipe.beta > 0 and self._params.kl == "exact"  # then the reference is at hand
        rows = np.unique(np.linspace(0, len(decisions) - 1, AFTER).round().astype(np.int64))
        entropy, kl = [], []
        for part in self._parts(rows):
            scores = self._scores(decisions, part)
            other = reference(part) if exact else self._of_reference(decisions, part).log_probs_all
            assert other is not None
            entropy.append(scores.entropy.cpu())
            kl.append(kl_exact(scores.log_probs_all, other).cpu())
        return {"entropy_end": torch.cat(entropy).mean().item(), "kl_end": torch.cat(kl).mean().item()}

    def _check_origin(self, log_prob: Tensor, decisions: Decisions) -> None:
        """That this policy sampled the decisions, or with `max_off_policy_kl` one that is close to it.

        KL[sampling || current] is estimated by k3 on the tokens that the sampling policy drew, group by group.
        """
        allowed = self._params.max_off_policy_kl
        if allowed == 0:
            self._check_on_policy(log_prob, decisions.log_prob)
            return
        of_token = kl_k3(torch.from_numpy(decisions.log_prob), log_prob).mean(dim=1).numpy()
        for group in np.unique(decisions.group):
            found = float(of_token[decisions.group == group].mean())
            if not found <= allowed:
                raise MismatchError(
                    f"group {group + 1} of the {decisions.group.max() + 1} in use was sampled by a policy {found:.3g} nats a "
                    f"token from this one; update.max_off_policy_kl allows {allowed:g}: sample again with this checkpoint, "
                    "update the one that sampled, or raise the limit"
                )

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
                cost = batch_cost(
                    lambda n: self._accumulate(sample, Batch(np.arange(n), 1.0), reference), self.policy.device
                )
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
            self._replays = False
            self.policy.replay_learning(False)
            torch.cuda.empty_cache()
            reporter.note(
                f"update: the memory of {self.policy.device} did not hold the pass; going on with {self._micro_batch} "
                "decisions a pass (set update.micro_batch or update.memory_gb lower to start there)"
            )


ROOM = (
    "set policy.gradient_checkpointing=true or policy.dtype=bfloat16, take a smaller policy.lora.rank, raise "
    "update.memory_gb, or free memory"
)
