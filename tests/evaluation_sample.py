"""Small evaluations as they lie on disk, with outcomes of one's choice."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from stages.store.artifacts import write_json
from stages.store.episodes import EpisodesAttrs, write_episodes
from stages.store.provenance import Manifest, write_manifest
from stages.types import InitialState

K, S = 2, 5
ATTRS = EpisodesAttrs(
    task="libero_object/6",
    instruction="pick up the butter and place it in the basket",
    starts="official",
    temperature=0.0,
    seed=0,
    repeats=1,
    max_env_steps=280,
    action_repeat=K,
    params={"assets": {"kind": "primitive", "digest": "ab" * 32}, "sim": {"physics": "lean", "settle_steps": 10}},
)


def decisions(length: int, seed: int = 0) -> dict[str, np.ndarray]:
    """The series of an episode of so many decisions; the last one ends after one environment step."""
    rng = np.random.default_rng(seed)
    return {
        "reward": rng.normal(size=length).astype(np.float32),
        "milestone": rng.integers(5, size=length).astype(np.int8),
        "action_token": rng.integers(1000, size=(length, 7)),
        "action": rng.uniform(-1, 1, (length, 7)),
        "log_prob": -rng.random((length, 7), np.float32),
        "entropy": rng.random((length, 7), np.float32),
        "env_steps": np.array([K] * (length - 1) + [1]),
        "sim_state": rng.normal(size=(length, K, S)),
    }


def write_sample(
    out: Path,
    outcomes: Sequence[bool | None],
    *,
    checkpoint: str = "cd" * 32,
    states: Sequence[InitialState] | None = None,
    whole: bool = True,
    shift: float = 0.0,
    **attrs: Any,
) -> Path:
    """Writes an evaluation of one episode for each outcome (None: crashed), repeat after repeat; `shift` moves its starts."""
    described = replace(ATTRS, **attrs)
    n = len(outcomes)
    per_repeat = n // described.repeats
    states = states or [InitialState("official", index) for index in range(per_repeat)]
    out.mkdir(parents=True)
    write_episodes(
        out,
        described,
        starts=[*states] * described.repeats,
        repeat=[index // per_repeat for index in range(n)],
        seed=list(range(n)),
        success=[outcome is True for outcome in outcomes],
        crashed=[outcome is None for outcome in outcomes],
        initial_state=[np.full(S, float(str(start).split("/")[1]) + shift) for start in [*states] * described.repeats],
        decisions=[{} if outcome is None else decisions(2 + index, index) for index, outcome in enumerate(outcomes)],
        whole=whole,
    )
    write_json(out / "episodes.json", [{"crashed": outcome is None} for outcome in outcomes])
    details = {"task": described.task, **({} if whole else {"incomplete": True})}
    inputs = {"checkpoint": {"path": "../checkpoint", "digest": checkpoint}}
    write_manifest(out, Manifest(kind="eval", params={}, seed=described.seed, inputs=inputs, details=details))
    return out
