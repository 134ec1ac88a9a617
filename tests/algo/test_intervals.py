"""Wilson's interval and Newcombe's paired one, against numbers worked out by hand."""

import pytest

from stages.algo.intervals import paired_difference, wilson


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


def test_paired_difference_by_hand() -> None:
    # A 35/50 with Wilson interval 0.562496 to 0.808965, B 49/50 with 0.895046 to 0.996461, d = 0.28.
    # Table 35, 0, 14, 1: ad - bc = 35, less n/2 = 25 is 10; phi = 10 / sqrt(35 * 15 * 49 * 1) = 0.062348
    # low:  up 0.98 - 0.895046 = 0.084954, down 0.808965 - 0.7 = 0.108965
    #       sqrt(0.0072172 - 2 * 0.062348 * 0.0092570 + 0.0118734) = 0.133926, so 0.28 - 0.133926 = 0.146074
    # high: up 0.996461 - 0.98 = 0.016461, down 0.7 - 0.562496 = 0.137504
    #       sqrt(0.0002710 - 2 * 0.062348 * 0.0022635 + 0.0189074) = 0.137463, so 0.28 + 0.137463 = 0.417463
    assert paired_difference(35, 0, 14, 1) == pytest.approx((0.146074, 0.417463), abs=5e-6)


def test_paired_difference_without_correction_where_outcomes_oppose() -> None:
    # Table 36, 2, 12, 0, an example that Newcombe 1998 prints: ad - bc = -24 is taken as it is,
    # phi = -24 / sqrt(38 * 12 * 48 * 2) = -0.114708; d = 0.2.
    # Wilson of 48/50: 0.865389 to 0.988960; of 38/50: 0.625911 to 0.857018
    # low:  up 0.96 - 0.865389 = 0.094611, down 0.857018 - 0.76 = 0.097018
    #       sqrt(0.0089512 + 2 * 0.114708 * 0.0091790 + 0.0094125) = 0.143070, so 0.056930
    # high: up 0.028960, down 0.134089: sqrt(0.0008387 + 2 * 0.114708 * 0.0038832 + 0.0179799) = 0.140428, so 0.340428
    assert paired_difference(36, 2, 12, 0) == pytest.approx((0.056930, 0.340428), abs=5e-6)


def test_paired_difference_turns_round_with_the_policies() -> None:
    low, high = paired_difference(20, 3, 11, 6)
    assert paired_difference(20, 11, 3, 6) == pytest.approx((-high, -low))
    # The same margins in agreement rather than at random: what the pairing is for.
    width = [high - low for low, high in (paired_difference(30, 0, 8, 12), paired_difference(22, 8, 16, 4))]
    assert width[0] < 0.7 * width[1]


def test_paired_difference_at_the_ends_stays_within_and_keeps_a_width() -> None:
    low, high = paired_difference(0, 10, 0, 0)
    assert low == -1.0 and -1.0 < high < -0.4
    low, high = paired_difference(25, 0, 0, 25)
    assert low < 0 < high and high == pytest.approx(-low)


@pytest.mark.parametrize("counts", [(0, 0, 0, 0), (5, -1, 2, 3)])
def test_what_is_no_paired_table_is_refused(counts: tuple[int, int, int, int]) -> None:
    with pytest.raises(ValueError, match="expected counts"):
        paired_difference(*counts)
