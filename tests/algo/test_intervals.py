"""Wilson's interval, against numbers worked out by hand."""

import pytest

from stages.algo.intervals import wilson


def test_wilson_by_hand() -> None:
    # 35/50, z = 1.96 (z^2 = 3.8415): centre 0.7 + 0.038415 = 0.738415; half width
    # 1.96 sqrt(0.7 * 0.3 / 50 + 3.8415 / 10000) = 1.96 sqrt(0.0042 + 0.00038415) = 0.132703; scale 1.076829
    # low 0.605712 / 1.076829 = 0.562496, high 0.871118 / 1.076829 = 0.808965
    assert wilson(35, 50) == pytest.approx((0.562496, 0.808965), abs=2e-6)


def test_wilson_at_the_ends_keeps_a_width() -> None:
    # 0/10: low 0, high = (z^2/20 + z sqrt(z^2/400)) / (1 + z^2/10) = (z^2/10) / (1 + z^2/10) = 0.38415/1.38415
    assert wilson(0, 10) == (0.0, pytest.approx(0.277533, abs=2e-6))
    assert wilson(10, 10) == (pytest.approx(1 - 0.277533, abs=2e-6), 1.0)


def test_confidence_widens() -> None:
    # z = 1.644854 at 90 %: 1/2 has p = 0.5, centre 0.5 + z^2/4 and scale 1 + z^2/2, so the middle is 0.5 exactly, and
    # half width z sqrt(0.125 + z^2/16) / (1 + z^2/2) = 1.644854 * 0.542307 / 2.352772 = 0.379134
    assert wilson(1, 2, confidence=0.9) == pytest.approx((0.5 - 0.379134, 0.5 + 0.379134), abs=2e-6)
    assert wilson(1, 2)[1] > wilson(1, 2, confidence=0.9)[1]


@pytest.mark.parametrize(("successes", "n", "confidence"), [(0, 0, 0.95), (3, 2, 0.95), (-1, 2, 0.95), (1, 2, 1.0)])
def test_what_is_no_proportion_is_refused(successes: int, n: int, confidence: float) -> None:
    with pytest.raises(ValueError, match="expected"):
        wilson(successes, n, confidence)
