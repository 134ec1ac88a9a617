"""Section A.2 of the paper, recomputed from its own table 3."""

import math

import numpy as np
import pytest

from stages.paper.numbers import A2_CLAIMS, TABLE_3
from stages.paper.weights import clusters, dendrogram_links, pair_statistics, pca, rounds_to


def test_statistics_by_hand() -> None:
    found = pair_statistics([(1, 2), (3, 2), (5, 5)])
    # a1: mean 3, squares 4 + 0 + 4; a2: mean 3, squares 1 + 1 + 4; products 2 + 0 + 4
    assert list(found.values()) == pytest.approx([3, 2, 3, math.sqrt(3), 6 / math.sqrt(8 * 6)])
    with pytest.raises(ValueError, match="at least two"):
        pair_statistics([(1, 2)])


def test_the_papers_text_and_its_table_disagree_in_a1_only() -> None:
    found = pair_statistics(TABLE_3)
    # 10 + 1 + 10 + 0.35 + 0.3 + 0.3 + 10 + 10 + 0.3 + 0.3 = 42.55; 1 + 0.1 + 5 + 0.65 + 4 x 0.7 + 1 + 1 = 11.55
    assert found["mean of a1"] == pytest.approx(4.255)
    assert found["mean of a2"] == pytest.approx(1.155)
    agree = {name: rounds_to(found[name], claim) for name, claim in A2_CLAIMS.items()}
    assert agree == {
        "mean of a1": False,
        "SD of a1": False,
        "mean of a2": True,
        "SD of a2": True,
        "Pearson r": True,
    }


def test_the_correlation_is_not_driven_by_the_extreme_pair() -> None:
    without = pair_statistics([pair for pair in TABLE_3 if pair != (10, 5)])
    assert without["Pearson r"] > pair_statistics(TABLE_3)["Pearson r"]


def test_rounding_takes_both_sides_of_a_tie() -> None:
    assert rounds_to(1.155, 1.16) and rounds_to(1.155, 1.15)
    assert not rounds_to(1.1549, 1.16)


def test_pca_finds_the_direction_of_the_variance() -> None:
    parts = pca([(0, 0), (3, 4), (6, 8)])  # on a line along (3, 4)/5
    assert parts.components[0] == pytest.approx([0.6, 0.8])
    assert parts.explained == pytest.approx([1, 0])
    assert parts.scores[:, 0] == pytest.approx([-5, 0, 5])
    table_3 = pca(TABLE_3)
    assert table_3.components @ table_3.components.T == pytest.approx(np.eye(2))
    assert table_3.components[0][0] > 0.98  # PC1 is a1, as the paper says


def test_the_four_identical_pairs_merge_at_no_distance() -> None:
    links = dendrogram_links(TABLE_3)
    # 4 x (0.3, 0.7) need three merges, 3 x (10, 1) two
    assert (links[:, 2] == 0).sum() == 5
    assert clusters(TABLE_3, 3) == [((0.3, 0.7), (0.35, 0.65), (1, 0.1)), ((10, 1),), ((10, 5),)]
