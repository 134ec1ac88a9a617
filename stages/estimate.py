"""What a run will take, before it starts: the memory of rollout and update, and roughly the time.

Memory is counted from shapes. Time is a roofline times what such code reaches of one, plus the simulator's known speed.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields

from stages.arithmetic import Arithmetic, Matrix
from stages.params import Params, SimParams
from stages.roofline import Rates, Roofline

# What computations are taken to reach of a device's rates, as `tgrpo bench policy` showed: for openvla-tiny on a CPU, and for
# OpenVLA-7B on an H200, where an update reached 0.52 and a decision with an adapter 0.54 (docs/benchmarks).
REACHED = {"cpu": 0.2, "cuda": 0.5}
# Besides tensors, a CUDA context with its libraries, or Python with torch, and what allocators leave unused.
OVERHEAD = int(1.5 * 2**30)
_FLOAT32 = 4
# Seconds of one control step on one core of an AMD EPYC, images drawn in software; docs/benchmarks has the records.
_STEP_S = {"benchmark, libero": 0.066, "benchmark, primitive": 0.035, "small": 0.0022}
_SMALL = 128  # pixels, up to which an image without shadows costs next to nothing


@dataclass(frozen=True)
class Memory:
    """Bytes on the device at the most demanding moment of an iteration."""

    weights: int
    adapter: int  # float32 weights, gradients and AdamW's two moments
    acting: int  # what acting keeps: keys and values, and where adapters are folded in, those weights
    learning: int  # activations of one pass, and such weights once more; acting needs less of its own
    overhead: int = OVERHEAD

    @property
    def total(self) -> int:
        return sum(getattr(self, field.name) for field in fields(self))


def memory(count: Arithmetic, params: Params, itemsize: int, decisions: int, folds: bool) -> Memory:
    """The memory of `rollout` and `update` in one process, as `tgrpo train` runs them.

    Args:
        itemsize: bytes of a weight of the base.
        decisions: in one forward and backward pass.
        folds: whether acting and learning keep copies of the weights with the adapter added, as in float32 on a CPU.
    """
    lora, envs = params.policy.lora, max(params.rollout.envs, params.eval.envs)
    folded = sum(m.size for m in count.adapted(lora) if m.part != "unused") * itemsize if folds else 0
    return Memory(
        weights=count.parameters * itemsize,
        adapter=count.lora_parameters(lora) * 4 * _FLOAT32,
        acting=envs * count.cache_bytes(itemsize) + folded,
        learning=decisions * activation_bytes(count, params, itemsize) + folded,
    )


def micro_batch(count: Arithmetic, params: Params, itemsize: int) -> int:
    """The decisions in one pass that `update` will find to fit its `memory_gb`, where that is given."""
    if params.update.micro_batch:
        return params.update.micro_batch
    if params.update.memory_gb is None:
        return params.update.minibatch
    fitting = int(params.update.memory_gb * 2**30) // activation_bytes(count, params, itemsize)
    return max(1, min(params.update.minibatch, fitting))


def activation_bytes(count: Arithmetic, params: Params, itemsize: int) -> int:
    """What one decision takes in a forward and backward pass, besides gradients of weights.

    A block of Llama keeps 10 h + 4 f values a token (h its width, f that of its MLP), a block of a vision tower 8 w + 2 m,
    and each adapter its r values in between. With gradient checkpointing a block keeps its input, and one block at a time
    everything. Without it, going backward through a block takes about as much again as the block kept.
    """
    lora, checkpointing = params.policy.lora, params.policy.gradient_checkpointing
    blocks = list(_blocks(count, {m.name: lora.rank for m in count.adapted(lora)}, itemsize))
    largest = max(kept for _, kept in blocks)
    through = (width for width, _ in blocks) if checkpointing else (kept for _, kept in blocks)
    projector = [m for m in count.matrices if m.part == "projector"]
    between = sum(m.positions * (m.inputs + m.outputs) for m in projector) * itemsize
    logits = 3 * 7 * count.config.n_action_bins * _FLOAT32
    return sum(through) + largest + between + logits


def _blocks(count: Arithmetic, ranks: dict[str, int], itemsize: int) -> Iterator[tuple[int, int]]:
    """Bytes of the input of each block that gradients reach, and of everything that it keeps."""

    def adapters(matrices: list[Matrix]) -> int:
        return sum(ranks.get(m.name, 0) for m in matrices)

    by_block: dict[str, list[Matrix]] = {}
    for m in count.matrices:
        if m.block and m.part != "unused":
            by_block.setdefault(".".join(m.name.split(".")[:4]), []).append(m)
    learning = {m.part for m in count.matrices if m.name in ranks}
    for matrices in by_block.values():
        first = matrices[0]
        if first.part == "language":
            tokens, width = count.sequence, first.inputs
            inner = next(m.outputs for m in matrices if m.name.endswith("gate_proj"))
            kept = 10 * width + 4 * inner
        elif first.part in learning:
            tokens, width = first.positions, first.inputs
            inner = next(m.outputs for m in matrices if m.name.endswith("fc1"))
            kept = 8 * width + 2 * inner
        else:
            continue
        yield tokens * width * itemsize, tokens * (kept + adapters(matrices)) * itemsize


@dataclass(frozen=True)
class Duration:
    """Seconds, roughly, when no trajectory ends before its limit."""

    act: float  # one decision of a group
    sim: float  # the environments' steps between two decisions
    update: float
    iteration: float
    training: float
    evaluation: float  # of `eval.episodes` at one temperature
    decisions: int  # of one trajectory


def duration(
    count: Arithmetic,
    params: Params,
    itemsize: int,
    rates: Rates,
    reached: float,
    *,
    limit: int,
    cores: int,
    assets: str,
) -> Duration:
    """How long an iteration, all of them and an evaluation take.

    Args:
        reached: the share of the rates that computations reach; see `REACHED`.
        limit: the suite's episode limit in environment steps, where params have none.
        cores: processors for the environments.
        assets: `libero` or `primitive`.
    """
    roofline = Roofline(count, itemsize, rates)
    p, policy = params.rollout, params.policy
    step = control_step(params.sim, assets)

    def decision(envs: int) -> tuple[float, float]:
        return roofline.act(envs) / reached, params.sim.action_repeat * step * math.ceil(envs / cores)

    decisions = math.ceil((p.max_env_steps or limit) / params.sim.action_repeat)
    act, sim = decision(p.envs)
    scored = p.groups * p.envs * decisions
    learning = params.update.epochs * roofline.learn(scored, policy.lora, policy.gradient_checkpointing)
    update = (learning + (roofline.score(scored) if params.update.beta else 0.0)) / reached
    iteration = p.groups * decisions * (act + sim) + update
    evaluated = math.ceil((params.eval.max_env_steps or limit) / params.sim.action_repeat)
    rounds = math.ceil(
        params.eval.episodes * (params.eval.repeats if params.eval.temperature else 1) / params.eval.envs
    )
    return Duration(
        act=act,
        sim=sim,
        update=update,
        iteration=iteration,
        training=params.train.iterations * iteration,
        evaluation=rounds * evaluated * sum(decision(params.eval.envs)),
        decisions=decisions,
    )


def control_step(sim: SimParams, assets: str) -> float:
    """Seconds of one control step with its image."""
    if sim.image_size <= _SMALL and not sim.shadows:
        return _STEP_S["small"]
    return _STEP_S[f"benchmark, {assets}"]


def clock(seconds: float) -> str:
    """Seconds in words, no more exact than an estimate is."""
    for unit_s, unit in ((86400, "days"), (3600, "hours"), (60, "minutes"), (1, "seconds")):
        if seconds >= 1.5 * unit_s:
            return f"{seconds / unit_s:.{0 if seconds >= 10 * unit_s else 1}f} {unit}"
    return f"{1000 * seconds:.0f} ms"


def size(nbytes: float) -> str:
    """Bytes in GiB or MiB."""
    return f"{nbytes / 2**30:.1f} GiB" if nbytes >= 2**30 else f"{nbytes / 2**20:.1f} MiB"
