"""Confidence intervals for success rates."""

from math import sqrt
from statistics import NormalDist


def wilson(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """(p + z^2/2n -+ z sqrt(p (1 - p)/n + z^2/4n^2)) / (1 + z^2/n)    with p = successes/n

    The score interval for a binomial proportion (Wilson 1927, JASA 22:209-212); z is the normal quantile of
    (1 + confidence)/2, 1.96 at 0.95. Unlike p -+ z sqrt(p (1 - p)/n) it stays within 0..1 and keeps its
    width at 0/n and n/n.

    Returns:
        The bounds (low, high) of the success rate, 0 <= low <= p <= high <= 1.

    Raises:
        ValueError: n is not positive, successes lies outside 0..n, or confidence outside 0..1 (both excluded).
    """
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"wilson({successes}, {n}): expected 0 <= successes <= n and n >= 1")
    if not 0 < confidence < 1:
        raise ValueError(f"wilson(confidence={confidence}): expected a value between 0 and 1")
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    p = successes / n
    centre = p + z**2 / (2 * n)
    half_width = z * sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    scale = 1 + z**2 / n
    # At p = 0 and p = 1 the two terms cancel exactly in theory, not in floats.
    return min(p, max(0.0, (centre - half_width) / scale)), max(p, min(1.0, (centre + half_width) / scale))
