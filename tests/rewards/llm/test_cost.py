import pytest

from stages.rewards.llm.cost import LIST_PRICES_OF, Cost, Tokens, list_price

USAGE = {
    "input_tokens": 1_000_000,
    "cache_creation_input_tokens": 1_000_000,
    "cache_read_input_tokens": 1_000_000,
    "output_tokens": 1_000_000,
}


@pytest.mark.parametrize(
    ("model", "usd"),
    [
        ("claude-sonnet-4-6", 3 + 3.75 + 0.3 + 15),
        ("claude-sonnet-4-5-20250929", 3 + 3.75 + 0.3 + 15),  # an id with its date
        ("claude-opus-4-6", 5 + 6.25 + 0.5 + 25),
        ("claude-opus-5-5", 4 + 5 + 0.2 + 20),  # reads from the cache at a twentieth
    ],
)
def test_list_prices(model: str, usd: float) -> None:
    cost = list_price(model, USAGE)
    assert cost.usd == pytest.approx(usd)
    assert cost.note == f"list prices of {LIST_PRICES_OF}"


@pytest.mark.parametrize(
    ("model", "usage", "endpoint", "why"),
    [
        ("claude-sonnet-9", USAGE, "https://api.anthropic.com", "claude-sonnet-9"),
        ("claude-sonnet-4-6-fast", USAGE, "https://api.anthropic.com", "claude-sonnet-4-6-fast"),
        ("claude-sonnet-4-6", USAGE, "http://127.0.0.1:8765", "not Anthropic's own"),
        ("claude-sonnet-4-6", {**USAGE, "service_tier": "priority"}, "https://api.anthropic.com", "priority"),
        ("claude-sonnet-4-6", {**USAGE, "speed": "fast"}, "https://api.anthropic.com", "fast"),
        ("claude-sonnet-4-6", {**USAGE, "inference_geo": "us"}, "https://api.anthropic.com", "us"),
    ],
)
def test_nothing_is_invented(model: str, usage: dict[str, object], endpoint: str, why: str) -> None:
    cost = list_price(model, usage, endpoint)
    assert cost.usd is None
    assert cost.note.startswith("cost not known") and why in cost.note
    assert Cost.total([list_price("claude-sonnet-4-6", USAGE), cost]).usd is None


def test_tokens_add_up_and_missing_counts_are_none() -> None:
    assert Tokens.of({"input_tokens": 3, "cache_read_input_tokens": None}) == Tokens(input=3)
    assert Tokens(1, 2, 3, 4) + Tokens(10, 20, 30, 40) == Tokens(11, 22, 33, 44)
