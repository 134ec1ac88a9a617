"""Confidence intervals for success rates, and for the difference of two on the same episodes."""

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


def paired_difference(
    both: int, only_a: int, only_b: int, neither: int, confidence: float = 0.95
) -> tuple[float, float]:
    """Newcombe's interval for p_b - p_a of two proportions measured on the same n units.

    With the Wilson intervals (l_a, u_a) and (l_b, u_b) of the two rates and d = p_b - p_a, the bounds are

        d - sqrt((p_b - l_b)^2 - 2 phi (p_b - l_b)(u_a - p_a) + (u_a - p_a)^2)
        d + sqrt((u_b - p_b)^2 - 2 phi (u_b - p_b)(p_a - l_a) + (p_a - l_a)^2)

    where phi estimates the correlation of the two outcomes from ad - bc (a both, d neither, b and c the discordant counts),
    less n/2 (but not below 0) where that is positive: the "hybrid score" interval with a continuity correction, method 10 of
    Newcombe 1998, Statistics in Medicine 17:2635-2650, the one it recommends.

    Args:
        both, only_a, only_b, neither: the 2x2 table: units on which both succeeded, only the first, only the second, none.

    Returns:
        The bounds (low, high), -1 <= low <= d <= high <= 1.

    Raises:
        ValueError: a negative count, no unit at all, or confidence outside 0..1 (both excluded).
    """
    counts = (both, only_a, only_b, neither)
    n = sum(counts)
    if min(counts) < 0 or n < 1:
        raise ValueError(f"paired_difference{counts}: expected counts of at least 0, and at least one unit")
    p_a, p_b = (both + only_a) / n, (both + only_b) / n
    low_a, high_a = wilson(both + only_a, n, confidence)
    low_b, high_b = wilson(both + only_b, n, confidence)
    product = (both + only_a) * (neither + only_b) * (both + only_b) * (neither + only_a)
    covariance = both * neither - only_a * only_b
    corrected = max(covariance - n / 2, 0.0) if covariance > 0 else covariance
    phi = corrected / sqrt(product) if product else 0.0

    def reach(up: float, down: float) -> float:
        return sqrt(max(up**2 - 2 * phi * up * down + down**2, 0.0))  # at phi = 1 the terms cancel, but not in floats

    difference = p_b - p_a
    return (
        max(-1.0, difference - reach(p_b - low_b, high_a - p_a)),
        min(1.0, difference + reach(high_b - p_b, p_a - low_a)),
    )
