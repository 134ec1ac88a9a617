"""A policy small enough for tests, and observations for it."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.params import ArchitectureParams, LoraParams, VisionTowerParams
from stages.policy.policy import VLAPolicy

SIZE = 32
INSTRUCTION = "pick up the butter and place it in the basket"
LORA = LoraParams(rank=4, alpha=8, dropout=0.0, target_modules="all-linear")
ARCHITECTURE = ArchitectureParams(
    patch_size=16,
    stem="conv",
    dinov2=VisionTowerParams(width=16, depth=2, heads=2),
    siglip=VisionTowerParams(width=16, depth=2, heads=2),
    hidden_size=32,
    layers=2,
    heads=2,
    intermediate_size=64,
    proprio=True,
)
NORM_STATS: dict[str, Any] = {
    "libero_object": {
        "action": {
            "q01": [-0.5, -1.0, -0.5, 0.0, -0.1, -0.1, 0.0],
            "q99": [0.5, 1.0, 0.9, 0.0, 0.1, 0.2, 1.0],
            "mask": [True] * 6 + [False],
        },
        "proprio": {"q01": [-1.0] * 8, "q99": [1.0] * 8},
    }
}


def make_policy(seed: int = 0, **changes: Any) -> VLAPolicy:
    return VLAPolicy.new(ARCHITECTURE.model_copy(update=changes), SIZE, NORM_STATS, seed, "cpu")


def observations(n: int, seed: int = 0) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (n, SIZE, SIZE, 3), dtype=np.uint8)
    return images, rng.uniform(-1, 1, (n, 8)).astype(np.float32)
