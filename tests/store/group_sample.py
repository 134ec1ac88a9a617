"""A small group to write and read: 3 trajectories of up to 40 decisions, 2 objects, images of 8 pixels."""

from pathlib import Path
from typing import Any

import numpy as np

from stages.store.groups import write_group
from stages.store.schema import GroupAttrs
from stages.types import Scene

G, T, K, S, O, SIZE = 3, 40, 2, 11, 2, 8  # noqa: E741 (the axis letters)
LENGTHS = np.array([40, 17, 33])

ATTRS = GroupAttrs(
    task="libero_object/6",
    instruction="pick up the butter and place it in the basket",
    object_names=("butter_1", "basket_1"),
    target="butter_1",
    container="basket_1",
    initial_state="sampled/3",
    action_repeat=K,
    image_size=SIZE,
    temperature=1.0,
    stop="each",
    seed=0,
    iteration=1,
    inputs={"checkpoint": {"path": "../checkpoints/base", "digest": "ab" * 32}},
    params={"rollout": {"envs": G}},
)


def scene(*lead: int, rng: np.random.Generator, success: Any = False) -> Scene:
    return Scene(
        ee_pos=rng.normal(size=(*lead, 3)),
        ee_quat=rng.normal(size=(*lead, 4)),
        gripper_qpos=rng.normal(size=(*lead, 2)),
        object_pos=rng.normal(size=(*lead, O, 3)),
        object_quat=rng.normal(size=(*lead, O, 4)),
        grasped=rng.random((*lead, O)) < 0.5,
        success=np.broadcast_to(success, lead).copy(),
    )


def decision(t: int) -> dict[str, Any]:
    """The arguments of `append` for decision t. Trajectory 1 succeeds with its last decision; padding holds rubbish."""
    rng = np.random.default_rng(t)
    return {
        "mask": t < LENGTHS,
        "scene": scene(G, rng=rng, success=np.array([False, t >= LENGTHS[1] - 1, False])),
        "image": rng.integers(256, size=(G, SIZE, SIZE, 3), dtype=np.uint8),
        "proprio": rng.normal(size=(G, 8)).astype(np.float32),
        "action_token": rng.integers(1000, size=(G, 7)),
        "action": rng.uniform(-1, 1, (G, 7)),
        "action_label": rng.uniform(-1, 1, (G, 7)),
        "log_prob": -rng.random((G, 7), np.float32),
        "entropy": rng.random((G, 7), np.float32),
        "reward": np.full(G, 1.0 + t % 2, np.float32),
        "milestone": np.full(G, t % 5),
        "env_steps": np.full(G, K),
        "sim_state": rng.normal(size=(G, K, S)),
    }


def write_sample(path: Path, decisions: int = T, overwrite: bool = False) -> Path:
    rng = np.random.default_rng(99)
    with write_group(
        path,
        ATTRS,
        trajectories=G,
        initial_state=rng.normal(size=S),
        initial_scene=scene(rng=rng),
        overwrite=overwrite,
    ) as writer:
        for t in range(decisions):
            writer.append(**decision(t))
    return path
