import numpy as np
import pytest

from stages.errors import ArtifactError
from stages.policy.action_tokens import ActionCodec, ActionTokenizer
from stages.policy.normalization import Bounds, suite_stats

LLAMA = ActionTokenizer(32000)
STATS = {"q01": [-2.0] * 5 + [0.3, 0.0], "q99": [4.0] * 5 + [0.3, 1.0], "mask": [True] * 6 + [False]}


@pytest.fixture
def codec() -> ActionCodec:
    return ActionCodec(LLAMA, Bounds.from_stats(STATS, 7))


@pytest.mark.parametrize(
    ("value", "token"),
    [
        (-1.0, 31999),  # on the first edge: bin 1, 32000 - 1
        (-5.0, 31999),  # clipped
        (1.0, 31744),  # on the last edge: bin 256
        (0.999, 31745),  # the last bin below it, 255: edges are 2/255 apart
        (0.0, 31872),  # 127.5 edge widths above -1: bin 128
    ],
)
def test_encode(value: float, token: int) -> None:
    assert LLAMA.encode(value) == token


@pytest.mark.parity
def test_every_bin_edge_belongs_to_the_bin_above_it() -> None:
    """np.digitize counts the edges at or below a value: bin k is [edge k-1, edge k), token 32000 - k."""
    edges = np.linspace(-1.0, 1.0, 256)
    numbers = np.arange(1, 257)
    np.testing.assert_array_equal(LLAMA.encode(edges), 32000 - numbers)
    np.testing.assert_array_equal(LLAMA.encode(np.nextafter(edges[1:], -2.0)), 32000 - numbers[:-1])
    np.testing.assert_array_equal(LLAMA.encode(np.nextafter(edges[:-1], 2.0)), 32000 - numbers[:-1])


@pytest.mark.parity
def test_a_float32_is_compared_with_the_edges_in_float64() -> None:
    """An edge rounded to float32 lies on one side of it: below, it falls into the bin before."""
    edges = np.linspace(-1.0, 1.0, 256)
    rounded = edges.astype(np.float32)
    below = rounded.astype(np.float64) < edges
    assert 50 < below.sum() < 200
    np.testing.assert_array_equal(LLAMA.encode(rounded), 32000 - (np.arange(1, 257) - below))


@pytest.mark.parity
@pytest.mark.parametrize("value", [np.inf, -np.inf])
def test_the_infinite_is_clipped(value: float) -> None:
    assert LLAMA.encode(value) == (31744 if value > 0 else 31999)


@pytest.mark.parity
def test_the_gripper_is_binarised_at_a_half_and_turned() -> None:
    raw = np.zeros((5, 7))
    raw[:, -1] = (0.0, 0.4999999, 0.5, 0.5000001, 1.1)
    raw[:, 0] = 0.25
    action = ActionCodec.to_environment(raw)
    np.testing.assert_array_equal(action[:, -1], [1, 1, 0, -1, -1])
    np.testing.assert_array_equal(action[:, 0], 0.25)
    assert raw[4, -1] == 1.1  # the caller's own stays as it is


def test_without_a_mask_every_dimension_is_scaled() -> None:
    """As in norm_stats entries that have none."""
    stats = {"q01": [-2.0, 10.0], "q99": [4.0, 30.0]}
    bounds = Bounds.from_stats(stats, 2)
    np.testing.assert_allclose(bounds.unnormalize([[0.0, -1.0]]), [[1.0, 10.0]])
    np.testing.assert_allclose(bounds.normalize([[4.0, 20.0]]), [[1.0, 0.0]])
    masked = Bounds.from_stats(stats | {"mask": [True, False]}, 2)
    np.testing.assert_allclose(masked.unnormalize([[0.0, -1.0]]), [[1.0, -1.0]])
    np.testing.assert_allclose(masked.normalize([[4.0, 20.0]]), [[1.0, 20.0]])


def test_decode_gives_bin_centres() -> None:
    # The lowest bin is [-1, -1 + 2/255]: centre -1 + 1/255. With 255 centres the two lowest ids share the highest.
    np.testing.assert_allclose(
        LLAMA.decode([31999, 31872, 31745, 31744]), [-254 / 255, 0.0, 254 / 255, 254 / 255], atol=1e-12
    )


def test_every_token_but_the_twin_survives_a_round_trip() -> None:
    tokens = np.arange(31745, 32000)
    np.testing.assert_array_equal(LLAMA.encode(LLAMA.decode(tokens)), tokens)


def test_decoded_action_is_unnormalised_and_the_gripper_is_minus_one_for_open(codec: ActionCodec) -> None:
    # Token 31872 is 0: 0.5 (0 + 1) (4 + 2) - 2 = 1. Sixth: q01 = q99 = 0.3. Gripper 0 is closed, +1; 1 is open, -1.
    tokens = np.full(7, 31872)
    np.testing.assert_allclose(codec.decode(tokens), [1, 1, 1, 1, 1, 0.3, 1.0], atol=1e-12)
    tokens[6] = 31745
    assert codec.decode(tokens)[6] == -1.0


def test_encode_inverts_decode_within_half_a_bin(codec: ActionCodec) -> None:
    rng = np.random.default_rng(0)
    action = np.concatenate(
        [rng.uniform(-2, 4, (50, 5)), np.full((50, 1), 0.3), rng.choice([-1.0, 1.0], (50, 1))], axis=1
    )
    back = codec.decode(codec.encode(action))
    # Half a bin is 1/255 of the normalised range, which is 6 / 2 = 3 wide per unit.
    np.testing.assert_allclose(back[:, :6], action[:, :6], atol=3 / 255 + 1e-9)
    np.testing.assert_array_equal(back[:, 6], action[:, 6])


def test_actions_beyond_the_bounds_are_clipped(codec: ActionCodec) -> None:
    assert codec.encode(np.full(7, 100.0))[0] == 31744


def test_a_dimension_that_never_varies_becomes_zero() -> None:
    bounds = Bounds.from_stats({"q01": [0.3], "q99": [0.3]}, 1)
    assert bounds.normalize([0.3]) == 0.0
    assert bounds.normalize([7.0]) == 0.0


def test_statistics_of_another_length_are_refused() -> None:
    with pytest.raises(ArtifactError, match=r"q01 \(1,\).*expected \(8,\)"):
        Bounds.from_stats({"q01": [0.0], "q99": [1.0]}, 8)
    with pytest.raises(ArtifactError, match="q99"):
        Bounds.from_stats({"q01": [0.0]}, 1)


def test_the_suite_is_found_with_and_without_no_noops() -> None:
    stats = {"libero_object_no_noops": {"a": 1}, "libero_goal": {"a": 2}}
    assert suite_stats(stats, "libero_object") == {"a": 1}
    assert suite_stats(stats, "libero_goal") == {"a": 2}
    assert suite_stats({"only": {"a": 3}}, None) == {"a": 3}
    with pytest.raises(ArtifactError, match="libero_spatial"):
        suite_stats(stats, "libero_spatial")
    with pytest.raises(ArtifactError, match="exactly one"):
        suite_stats(stats, None)
