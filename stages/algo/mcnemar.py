"""Did the second of two policies do better on the same episodes? The exact McNemar test."""

from math import comb


def mcnemar(only_a: int, only_b: int) -> float:
    """p = min(1, 2 P(X <= min(b, c)))    with X ~ Binomial(b + c, 1/2)

    The exact two-sided test (McNemar 1947, Psychometrika 12:153-157, with the binomial in place of his chi-squared) of the
    hypothesis that the policies succeed equally often. Only the discordant units tell: those on which one succeeded and the
    other did not (b, c); under the hypothesis either is as likely. It assumes that units are independent of each other. With
    no discordant unit p is 1.

    Args:
        only_a, only_b: units on which only the first, only the second policy succeeded.

    Returns:
        The p-value, up to 1; below 1e-308 it is rounded to 0.

    Raises:
        ValueError: a negative count.
    """
    if only_a < 0 or only_b < 0:
        raise ValueError(f"mcnemar({only_a}, {only_b}): expected counts of at least 0")
    n = only_a + only_b
    # Whole numbers up to one division, so that nothing is rounded before it.
    tail = sum(comb(n, k) for k in range(min(only_a, only_b) + 1))
    return min(1.0, 2 * tail / 2**n)
