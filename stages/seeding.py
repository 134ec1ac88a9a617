"""Named random streams: every random draw of a run comes from the run's seed and the name of what draws."""

import hashlib


def derive_seed(seed: int, *labels: str | int) -> int:
    """A 32-bit seed for one named stream, independent of how many others are drawn, and in which order.

    >>> derive_seed(0, "rollout", 3, 1) == derive_seed(0, "rollout", 3, 1)
    True
    >>> derive_seed(0, "rollout", 3, 1) == derive_seed(0, "rollout", 3, 2)
    False
    """
    text = "/".join(str(part) for part in (seed, *labels))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "little")
