"""The step comparison within a milestone, against numbers worked out by hand."""

import numpy as np

from stages.algo.milestones import milestone_advantage, taken_in

# Two trajectories of three decisions, rewards 0, 1, 3 in the milestones 0, 1, 2. The first moves on at once and again
# at t=2; the second moves on at t=1 and falls back at t=2.
MILESTONE = np.array([[1, 1, 2], [0, 1, 0]])
REWARD = np.array([0.0, 1.0, 3.0])[MILESTONE]
ALL = np.ones((2, 3), bool)


def test_a_decision_belongs_to_the_milestone_it_was_taken_in() -> None:
    np.testing.assert_array_equal(taken_in(MILESTONE), [[0, 1, 1], [0, 0, 1]])


def test_rewards_after_decisions_of_one_milestone_are_compared() -> None:
    # Taken in 0: (0, t=0) -> 1, (1, t=0) -> 0, (1, t=1) -> 1: mean 2/3, squares 1/9 + 4/9 + 1/9 = 2/3, std = sqrt(1/3),
    #   so 1/3 / sqrt(1/3) = 1/sqrt 3 and -2/sqrt 3.
    # Taken in 1: (0, t=1) -> 1, (0, t=2) -> 3, (1, t=2) -> 0: mean 4/3, squares 1/9 + 25/9 + 16/9 = 14/3, std = sqrt(7/3).
    third, seventh = 3**-0.5, (7 / 3) ** 0.5
    expected = [[third, -1 / 3 / seventh, 5 / 3 / seventh], [-2 * third, third, -4 / 3 / seventh]]
    np.testing.assert_allclose(milestone_advantage(REWARD, ALL, MILESTONE), expected, atol=1e-12)


def test_being_ahead_is_no_merit_of_the_decision() -> None:
    # Neither leaves its milestone after t=0. By time step the first would be ahead (+1/sqrt 2) at t=1 and t=2 for nothing.
    milestone = np.array([[1, 1, 1], [0, 0, 0]])
    found = milestone_advantage(milestone * 2.0, ALL, milestone)
    np.testing.assert_array_equal(found[0, 1:], 0)  # in milestone 1 all stay
    # Taken in 0: rewards 2, 0, 0, 0: mean 1/2, squares 9/4 + 3/4 = 3, std 1.
    np.testing.assert_allclose([found[0, 0], *found[1]], [1.5, -0.5, -0.5, -0.5])


def test_padding_and_what_it_holds_count_for_nothing() -> None:
    reward, milestone = np.hstack([REWARD, np.full((2, 2), np.nan)]), np.hstack([MILESTONE, np.full((2, 2), 7)])
    mask = np.hstack([ALL, np.zeros((2, 2), bool)])
    found = milestone_advantage(reward, mask, milestone)
    np.testing.assert_array_equal(found[:, :3], milestone_advantage(REWARD, ALL, MILESTONE))
    assert not found[:, 3:].any()
