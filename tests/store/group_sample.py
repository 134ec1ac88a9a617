"""A small group to write and read: 3 trajectories of up to 40 decisions, 2 objects, a joint, images of 8 pixels."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.store.groups import Score, write_group
from stages.store.schema import GroupAttrs
from stages.types import Scene

G, T, K, S, O, J, R, Q, SIZE = 3, 40, 2, 11, 2, 1, 2, 1, 8  # noqa: E741 (the axis letters)
LENGTHS = np.array([40, 17, 33])

ATTRS = GroupAttrs(
    task="libero_object/6",
    instruction="pick up the butter and place it in the basket",
    object_names=("butter_1", "basket_1"),
    joint_names=("stove_1_button",),
    joint_ranges=((-0.005, 2.1),),
    place_names=("basket_1_contain_region", "stove_1_knob"),
    goals=(("in", "butter_1", "basket_1_contain_region"),),
    initial_state="sampled/3",
    labels=(),
    action_repeat=K,
    image_size=SIZE,
    temperature=1.0,
    stop="each",
    max_env_steps=80,
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
        object_lin_vel=rng.normal(size=(*lead, O, 3)),
        object_ang_vel=rng.normal(size=(*lead, O, 3)),
        grasped=rng.random((*lead, O)) < 0.5,
        touched=rng.random((*lead, O)) < 0.5,
        joint_pos=rng.normal(size=(*lead, J)),
        place_pos=rng.normal(size=(*lead, R, 3)),
        goal=rng.random((*lead, Q)) < 0.5,
        success=np.broadcast_to(success, lead).copy(),
    )


def given(reward: Any, milestone: Any = 0) -> Score:
    """A score that is known beforehand: arrays that can be broadcast to (G, T)."""

    def score(_: Scene, __: Scene, env_steps: NDArray[np.int16]) -> tuple[NDArray[np.float32], NDArray[np.int8]]:
        shape = env_steps.shape
        return np.broadcast_to(np.float32(reward), shape), np.broadcast_to(np.int8(milestone), shape)

    return score


def sample_score(
    initial: Scene, scenes: Scene, env_steps: NDArray[np.int16]
) -> tuple[NDArray[np.float32], NDArray[np.int8]]:
    """That of the sample: 1, 2, 1, 2, ... and the milestones 0, 1, 2, 3, 4, 0, ..."""
    t = np.arange(env_steps.shape[1])
    return given(1 + t % 2, t % 5)(initial, scenes, env_steps)


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
        score=sample_score,
        overwrite=overwrite,
    ) as writer:
        for t in range(decisions):
            writer.append(**decision(t))
    return path
