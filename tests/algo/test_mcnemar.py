"""The exact McNemar test, against binomial sums worked out by hand."""

import pytest

from stages.algo.mcnemar import mcnemar


@pytest.mark.parametrize(
    ("only_a", "only_b", "p"),
    [
        (0, 14, 2 / 2**14),  # the one outcome that is as extreme, on either side
        (5, 16, 2 * (1 + 21 + 210 + 1330 + 5985 + 20349) / 2**21),  # C(21, 0..5)
        (1, 4, 2 * (1 + 5) / 2**5),
        (3, 3, 1.0),  # 2 * 42/64 is more than one
        (0, 0, 1.0),
    ],
)
def test_mcnemar_by_hand(only_a: int, only_b: int, p: float) -> None:
    assert mcnemar(only_a, only_b) == pytest.approx(p, rel=1e-12)
    assert mcnemar(only_b, only_a) == mcnemar(only_a, only_b)


def test_a_lead_of_any_size_has_a_finite_p() -> None:
    assert 0 < mcnemar(100, 400) < 1e-40
    assert mcnemar(0, 3000) == 0.0


def test_negative_counts_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 0"):
        mcnemar(-1, 3)
