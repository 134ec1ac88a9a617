"""`tgrpo bench policy`: what a decision and its learning cost, beside the plain loop and beside what the device allows.

Ours, the plain loop of `stages.bench_upstream` and the probes of `stages.roofline` take turns in one process on the same
weights and frames, so that whatever else the machine does hits all alike. First all that acts, then, with an adapter, all
that learns.
"""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from stages.arithmetic import Arithmetic
from stages.bench_upstream import PlainLoop
from stages.bench_weights import INSTRUCTION, Architecture, random_policy
from stages.errors import TgrpoError, UsageError
from stages.estimate import size
from stages.learner import AHEAD
from stages.machine import cores, machine
from stages.params import Params
from stages.policy.acting import capture
from stages.policy.images import image_transform
from stages.policy.memory import peak_bytes
from stages.policy.policy import VLAPolicy
from stages.policy.tokenizer import prompt_ids
from stages.reporting import Reporter, Silent
from stages.roofline import Probes, Rates, Roofline
from stages.seeding import derive_seed
from stages.stopwatch import Stopwatch
from stages.store.provenance import package_versions
from stages.timing import IDLE, Contender, Cost, Seconds, by_turns
from stages.types import ACTION_DIM, PROPRIO_DIM
from stages.workspace import open_checkpoint, open_policy

ROUNDS, QUICK_ROUNDS = 30, 5
_BUDGET_S = 30.0  # for all that acts, and for all that learns
_PUBLISHED_FRAME = 256  # pixels that the published image pipeline takes
_GROUP = 4 * 200  # decisions: the paper's group of 4 trajectories of 200 steps
_TEMPERATURE = 1.0


@dataclass(frozen=True)
class Line:
    """One computation, for all observations of the batch at once."""

    what: str
    ours: Cost
    plain: Cost | None  # the plain loop, one observation after the other
    roofline: float | None  # milliseconds that the device's rates allow at best
    amount: int  # of `unit` in one call
    unit: str


@dataclass(frozen=True)
class Peak:
    """Bytes of tensors on the device."""

    weights: int  # the model with its adapter, resident throughout
    acting: int  # beyond the weights, the first decision with what acting keeps included
    learning: int  # beyond the weights: one forward and backward pass, and AdamW's step
    plain_acting: int
    plain_learning: int

    @property
    def total(self) -> int:
        """Of rollout and update, were what acting takes for a moment never given back."""
        return self.weights + self.acting + self.learning


@dataclass(frozen=True)
class Record:
    """All that one run measured."""

    weights: str  # where they come from
    batch: int  # observations acted on at once
    learn_batch: int  # decisions learnt from at once
    device: str
    dtype: str
    parameters: int
    prompt_tokens: int
    sequence: int  # tokens of one decision that is learnt from
    settings: dict[str, Any]  # of params.policy
    machine: dict[str, Any]
    versions: dict[str, str]
    had_processor: float | None  # the share of the time in which its threads could run; None on a GPU
    acting_rates: Rates  # with the threads of acting
    learning_rates: Rates
    lines: dict[str, Line]
    peak: Peak
    group_update: float  # seconds for a group of 4 x 200 decisions: reference, forward and backward, in such batches
    group_flops: int

    @property
    def group_utilisation(self) -> float:
        """The share of the measured matmul rate that such an update reaches."""
        return self.group_flops / self.group_update / self.learning_rates.matmul

    def to_json(self) -> str:
        ratios = {
            name: {
                "per_s": 1000 * line.amount / line.ours.median,
                "speed_to_plain": line.plain and line.plain.median / line.ours.median,
                "time_to_roofline": line.roofline and line.ours.median / line.roofline,
            }
            for name, line in self.lines.items()
        }
        derived = {"group_utilisation": self.group_utilisation, "peak_total": self.peak.total}
        return json.dumps({**asdict(self), "ratios": ratios, **derived}, indent=1)


def bench_policy(
    params: Params,
    batch: int = 8,
    architecture: Architecture | None = None,
    learn_batch: int | None = None,
    *,
    quick: bool = False,
    reporter: Reporter | None = None,
) -> Record:
    """Runs everything once.

    Args:
        params: `policy` says how it computes, and with which adapter it learns.
        batch: observations to act on at once.
        architecture: random weights of that; None takes the checkpoint `policy.base`.
        learn_batch: decisions to learn from at once; None takes as many as observations.
        quick: fewer rounds.
        reporter: hears of the progress.

    Raises:
        ArtifactError, MismatchError, ParamsError: see `stages.workspace.open_policy`.
        TgrpoError: too little memory.
        UsageError: a batch of none.
    """
    learn_batch = batch if learn_batch is None else learn_batch
    for option, value in (("--batch", batch), ("--learn-batch", learn_batch)):
        if value < 1:
            raise UsageError(f"{option} {value}: expected at least 1")
    reporter = reporter or Silent()
    load_before = os.getloadavg()[0]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # of acting, beside the environments' processes
    try:
        policy, weights = _open(params, max(batch, learn_batch), architecture)
        bench = _Bench(policy, params, batch, learn_batch, QUICK_ROUNDS if quick else ROUNDS, reporter)
        return bench.run(weights, load_before)
    except torch.OutOfMemoryError as error:
        raise TgrpoError(
            f"the device has too little memory for a batch of {batch} and learning from {learn_batch} "
            f"({str(error).split('. ')[0]}); use a smaller --batch or --learn-batch, or --set "
            "policy.gradient_checkpointing=true"
        ) from None
    finally:
        torch.set_num_threads(threads)


def table(record: Record) -> Iterator[str]:
    """The record as text, one line at a time."""
    where = record.machine
    load = " to ".join(f"{value:.1f}" for value in where["load_average"])
    yield f"{record.weights}: {record.parameters / 1e6:,.1f} million parameters in {record.dtype} on {record.device}"
    yield f"{where['cores']} cores of {where['processor']}, load {load}"
    learnt = "" if record.learn_batch == record.batch else f", learning from {record.learn_batch} at once"
    yield (
        f"batch of {record.batch}{learnt}, {record.prompt_tokens} prompt tokens, {record.sequence} tokens a decision learnt "
        "from"
    )
    yield f"learning: {', '.join(f'{key} {value}' for key, value in record.settings.items())}"
    if record.had_processor is not None and record.had_processor < IDLE:
        yield f"THE MACHINE IS BUSY: its threads could run for {record.had_processor:.0%} of the time; do not quote this"
    yield ""
    head = f"{'for a whole batch':<34}{'ms':>9}{'10-90%':>18}{'per second':>22}"
    yield f"{head}{'plain loop':>13}{'speed':>10}{'roofline':>11}{'time':>9}"
    for line in record.lines.values():
        spread = f"{line.ours.p10:.2f}-{line.ours.p90:.2f}"
        rate = f"{1000 * line.amount / line.ours.median:,.0f} {line.unit}"
        plain = (
            f"{line.plain.median:>10.2f} ms{line.plain.median / line.ours.median:>8.1f} x" if line.plain else " " * 23
        )
        roof = f"{line.roofline:>8.2f} ms{line.ours.median / line.roofline:>7.2f} x" if line.roofline else ""
        yield f"  {line.what:<32}{line.ours.median:>9.2f}{spread:>18}{rate:>22}{plain}{roof}".rstrip()
    yield "speed: ours to the plain loop's. time: ours to the roofline's. Ours normalises frames in its prefill."
    yield ""
    for what, rates in (("acting", record.acting_rates), ("learning", record.learning_rates)):
        yield (
            f"roofline of {what}: {rates.matmul / 1e12:,.3f} TFLOP/s in matrix products, {rates.bandwidth / 1e9:,.1f} GB/s "
            "read, both measured between the others"
        )
    peak = record.peak
    yield (
        f"memory: weights {size(peak.weights)}, and at most {size(peak.acting)} to act (plain loop "
        f"{size(peak.plain_acting)}), {size(peak.learning)} to learn (plain loop {size(peak.plain_learning)}): "
        f"rollout and update in {size(peak.total)}"
    )
    yield (
        f"an update from a group of 4 x 200 decisions (reference, forward, backward): {record.group_update:.1f} s, at "
        f"{record.group_utilisation:.0%} of the matrix products' rate"
    )


def _open(params: Params, batch: int, architecture: Architecture | None) -> tuple[VLAPolicy, str]:
    if architecture:
        return random_policy(architecture, params, batch), f"{architecture}, random weights"
    params, folder = open_checkpoint(params, Path(params.policy.base_of(params.task)))
    return open_policy(params, folder), params.policy.base_of(params.task)


class _Bench:
    def __init__(
        self, policy: VLAPolicy, params: Params, batch: int, learn_batch: int, rounds: int, reporter: Reporter
    ) -> None:
        self._policy, self._params, self._rounds, self._reporter = policy, params, rounds, reporter
        self._batch, self._learn_batch = batch, learn_batch
        self._referred = max(learn_batch, AHEAD)  # decisions that a learner's reference scores at once
        config, model = policy.config, policy.model
        published = config.image_resize_strategy != "none"
        side = _PUBLISHED_FRAME if published else config.image_size
        draws, most = np.random.default_rng(0), max(batch, learn_batch)
        frames: NDArray[np.uint8] = draws.integers(0, 256, (most, side, side, 3), dtype=np.uint8)
        proprio = draws.uniform(-1, 1, (most, PROPRIO_DIM)).astype(np.float32)
        self._frames, self._proprio = frames[:batch], proprio[:batch]
        self._prepared = policy.prepare(self._frames)
        self._learnt, self._learnt_proprio = policy.prepare(frames[:learn_batch]), proprio[:learn_batch]
        first = policy.token_ids.stop - config.n_action_bins
        self._tokens = draws.integers(first, policy.token_ids.stop, (learn_batch, ACTION_DIM))
        self._generator = torch.Generator().manual_seed(0)
        self._watch = Stopwatch(policy.device)
        self._suite = None if len(config.norm_stats or {}) == 1 else params.task.split("/")[0]
        self._plain = PlainLoop(model, policy.tokenizer, params.policy.center_crop, self._suite)
        self._count = Arithmetic(config, len(prompt_ids(policy.tokenizer, INSTRUCTION)))

    def run(self, weights: str, load_before: float) -> Record:
        policy, count, p = self._policy, self._count, self._params.policy
        dtype, n, m = policy.model.dtype, self._batch, self._learn_batch
        read = count.decode_bytes(dtype.itemsize)
        peak_acting = peak_bytes(self._act, policy.device)
        peak_plain_acting = peak_bytes(self._plain_act, policy.device)
        probes = Probes(policy.device, dtype, read)
        acting = self._by_turns("acting", probes, self._acting())
        acting_rates = probes.rates(acting)

        policy.add_lora(p.lora, derive_seed(self._params.seed, "lora"))
        torch.set_num_threads(p.threads if policy.device.type == "cpu" else 1)
        optimizer = torch.optim.AdamW([parameter for _, parameter in policy.trainable_parameters()], lr=1e-12)
        peak_learning = peak_bytes(partial(self._learn, optimizer), policy.device)
        peak_plain_learning = peak_bytes(self._plain_learn, policy.device)
        policy.replay_learning(True)
        learning = self._by_turns("learning", probes, self._learning())
        learning_rates = probes.rates(learning)
        torch.set_num_threads(1)
        adapted = self._by_turns(
            "acting with the adapter", None, {"act_adapter": self._timed("act_adapter", self._act)}
        )

        roofline = Roofline(count, dtype.itemsize, acting_rates)
        learns = Roofline(count, dtype.itemsize, learning_rates)
        sequence, cost = m * count.sequence, {**acting, **learning, **adapted}

        def line(name: str, what: str, bound: float | None, amount: int, unit: str, plain: str = "") -> Line:
            roof = None if bound is None else 1000 * bound
            return Line(what, cost[name], cost.get(plain or f"plain {name}"), roof, amount, unit)

        lines = {
            "preprocessing": line("preprocessing", "preprocessing", None, n, "frames"),
            "prefill": line(
                "prefill", "prefill: vision, prompt", roofline.prefill(n), n * count.prompt_length, "tokens"
            ),
            "decode": line("decode", "decode, one token", roofline.decode(n), n, "tokens"),
            "act": line("act", "act", roofline.act(n), n, "actions"),
            "act_adapter": line("act_adapter", "act with an adapter", roofline.act(n), n, "actions", plain="plain act"),
            "score": line("score", "log_prob", learns.score(m), sequence, "tokens"),
            "reference": line(
                "reference",
                f"the reference's, {self._referred} at once",
                learns.score(self._referred),
                self._referred * count.sequence,
                "tokens",
            ),
            "learn": line(
                "learn", "log_prob and backward", learns.learn(m, p.lora, p.gradient_checkpointing), sequence, "tokens"
            ),
        }
        per_decision = (cost["reference"].median / self._referred + cost["learn"].median / m) / 1000
        waits = ((acting["plain act"], 1), (learning["matrix product"], min(p.threads, cores())))
        had = min(timed.cpu / timed.median / threads for timed, threads in waits)
        return Record(
            weights=weights,
            batch=n,
            learn_batch=m,
            device=torch.cuda.get_device_name(policy.device) if policy.device.type == "cuda" else "the CPU",
            dtype=str(dtype).removeprefix("torch."),
            parameters=count.parameters,
            prompt_tokens=count.prompt_tokens,
            sequence=count.sequence,
            settings={
                "rank": p.lora.rank,
                "checkpointing": p.gradient_checkpointing,
                "sampling": p.sampling,
                "threads": p.threads,
            },
            machine={**machine(), "load_average": [load_before, os.getloadavg()[0]]},
            versions=dict(package_versions()),
            had_processor=None if policy.device.type == "cuda" else min(1.0, had),
            acting_rates=acting_rates,
            learning_rates=learning_rates,
            lines=lines,
            peak=Peak(
                weights=sum(parameter.nbytes for parameter in policy.model.parameters()),
                acting=peak_acting,
                learning=peak_learning,
                plain_acting=peak_plain_acting,
                plain_learning=peak_plain_learning,
            ),
            group_update=_GROUP * per_decision,
            group_flops=_GROUP * (count.forward_flops() + count.learning_flops(p.lora, p.gradient_checkpointing)),
        )

    def _by_turns(self, what: str, probes: Probes | None, contenders: Mapping[str, Contender]) -> dict[str, Cost]:
        every = {**(probes.contenders() if probes else {}), **contenders}
        with self._reporter.bar(what, (self._rounds + 1) * len(every)) as advance:
            return by_turns(every, self._rounds, advance, _BUDGET_S)

    def _timed(self, name: str, run: Callable[[], object]) -> Contender:
        return lambda: {name: self._watch.time(run)}

    def _acting(self) -> dict[str, Contender]:
        """Ours whole and in pieces, as graphs where `act` runs graphs; and the plain loop."""
        policy = self._policy
        engine = policy.engine()
        prompt = torch.tensor([prompt_ids(policy.tokenizer, INSTRUCTION)])
        uniform = torch.rand(self._batch, ACTION_DIM, dtype=torch.float64, generator=self._generator)
        situation = engine.situate(
            self._prepared.pixels, self._plain.state(self._proprio), prompt, uniform, _TEMPERATURE
        )
        last = ACTION_DIM - 1
        pieces: list[Callable[[], None]] = [partial(engine.prefill, situation), partial(engine.step, situation, last)]
        if policy.device.type == "cuda":
            pieces = capture(pieces, torch.cuda.graph_pool_handle())
        return {
            "plain": self._plain_timed,
            "act": self._timed("act", self._act),
            "preprocessing": self._timed("preprocessing", lambda: policy.prepare(self._frames)),
            "prefill": self._timed("prefill", pieces[0]),
            "decode": self._timed("decode", pieces[1]),
        }

    def _learning(self) -> dict[str, Contender]:
        policy = self._policy

        def score() -> None:
            with torch.no_grad():
                self._score()

        def reference() -> None:
            with torch.no_grad(), policy.reference():
                policy.log_prob(*referred)

        rows = np.arange(self._referred) % self._learn_batch
        referred = (self._learnt[rows], self._learnt_proprio[rows], INSTRUCTION, self._tokens[rows], _TEMPERATURE)

        def plain_score() -> None:
            with torch.no_grad():
                self._plain_scores()

        def forget(run: Callable[[], object]) -> Callable[[], None]:
            def once() -> None:
                run()
                policy.model.zero_grad(set_to_none=True)

            return once

        return {
            "score": self._timed("score", score),
            "reference": self._timed("reference", reference),
            "learn": self._timed("learn", forget(self._learn)),
            "plain score": self._timed("plain score", plain_score),
            "plain learn": self._timed("plain learn", forget(self._plain_learn)),
        }

    def _act(self) -> None:
        self._policy.act(self._frames, self._proprio, INSTRUCTION, _TEMPERATURE, self._generator)

    def _score(self) -> torch.Tensor:
        return self._policy.log_prob(
            self._learnt, self._learnt_proprio, INSTRUCTION, self._tokens, _TEMPERATURE
        ).log_prob

    def _learn(self, optimizer: torch.optim.Optimizer | None = None) -> None:
        self._score().sum().backward()
        if optimizer is not None:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    def _plain_act(self) -> Mapping[str, Seconds]:
        return self._plain.act(self._frames, self._proprio, INSTRUCTION, _TEMPERATURE)[2]

    def _plain_timed(self) -> Mapping[str, Seconds]:
        return {f"plain {piece}": took for piece, took in self._plain_act().items()}

    def _plain_scores(self) -> list[torch.Tensor]:
        policy = self._policy
        transform = image_transform(policy.config, self._params.policy.center_crop, policy.device)
        pixels = transform.normalize(self._learnt.pixels.to(policy.device))
        return self._plain.score(pixels, self._learnt_proprio, INSTRUCTION, self._tokens)

    def _plain_learn(self) -> None:
        for log_probs in self._plain_scores():
            log_probs.sum().backward()
