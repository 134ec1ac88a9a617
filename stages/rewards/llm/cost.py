"""What replies cost: tokens as the server counted them, and USD by list price where that is known.

Prices are Anthropic's list prices as they were published on `LIST_PRICES_OF`, for standard speed and tier. They change, and
a contract may say otherwise: the number is there to tell cents from dollars, not to check a bill.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

LIST_PRICES_OF = "2026-10-24"

ANTHROPIC = "https://api.anthropic.com"
"""The address whose prices these are."""

_CACHE_WRITE = 1.25  # of the price of input, for a cache that lives 5 minutes
_PER_TOKEN = 1e-6

# Model -> USD per million tokens of input and of output, and the price of a token read from the cache as part of input's.
_LIST_PRICES: dict[str, tuple[float, float, float]] = {
    "claude-opus-4-1": (15.0, 75.0, 0.1),
    "claude-opus-4-5": (5.0, 25.0, 0.1),
    "claude-opus-4-6": (5.0, 25.0, 0.1),
    "claude-opus-4-7": (5.0, 25.0, 0.1),
    "claude-opus-4-8": (5.0, 25.0, 0.1),
    "claude-opus-5": (5.0, 25.0, 0.1),
    "claude-opus-5-5": (4.0, 20.0, 0.05),
    "claude-sonnet-4-5": (3.0, 15.0, 0.1),
    "claude-sonnet-4-6": (3.0, 15.0, 0.1),
    "claude-sonnet-5": (2.0, 10.0, 0.1),
    "claude-sonnet-5-5": (2.0, 10.0, 0.05),
    "claude-haiku-4-5": (1.0, 5.0, 0.1),
    "claude-fable-5": (10.0, 50.0, 0.1),
    "claude-fable-5-1": (10.0, 50.0, 0.025),
}


@dataclass(frozen=True)
class Tokens:
    """Token counts of one reply or of several. The four kinds do not overlap."""

    input: int = 0  # neither written to nor read from the prompt cache
    cache_write: int = 0
    cache_read: int = 0
    output: int = 0

    @classmethod
    def of(cls, usage: Mapping[str, Any]) -> "Tokens":
        """From `usage` of a message of the API, where counts may be missing or null."""
        return cls(
            input=int(usage.get("input_tokens") or 0),
            cache_write=int(usage.get("cache_creation_input_tokens") or 0),
            cache_read=int(usage.get("cache_read_input_tokens") or 0),
            output=int(usage.get("output_tokens") or 0),
        )

    def __add__(self, other: "Tokens") -> "Tokens":
        return Tokens(
            self.input + other.input,
            self.cache_write + other.cache_write,
            self.cache_read + other.cache_read,
            self.output + other.output,
        )

    def to_json(self) -> dict[str, int]:
        return asdict(self)


@dataclass(frozen=True)
class Cost:
    """USD, or None where it is not known; `note` says by which prices, or why it is not known."""

    usd: float | None
    note: str

    @classmethod
    def total(cls, costs: Iterable["Cost"]) -> "Cost":
        """The sum; not known as soon as one of them is not."""
        usd = 0.0
        for cost in costs:
            if cost.usd is None:
                return cost
            usd += cost.usd
        return cls(round(usd, 6), _KNOWN)


_KNOWN = f"list prices of {LIST_PRICES_OF}"


def list_price(model: str, usage: Mapping[str, Any], endpoint: str = ANTHROPIC) -> Cost:
    """The cost of one reply.

    Args:
        model: the id that the reply names, with or without its date.
        usage: of the reply.
        endpoint: the address that was asked.
    """
    if endpoint.rstrip("/") != ANTHROPIC:
        return Cost(None, f"cost not known: {endpoint} is not Anthropic's own address")
    prices = _LIST_PRICES.get(re.sub(r"-\d{8}$", "", model))
    if prices is None:
        return Cost(None, f"cost not known: no list price here for the model {model}")
    for key, usual in (("service_tier", {None, "standard"}), ("speed", {None, "standard"})):
        if usage.get(key) not in usual:
            return Cost(None, f"cost not known: no list price here for {key} = {usage.get(key)}")
    if usage.get("inference_geo") not in {None, "global", "not_available"}:
        return Cost(None, f"cost not known: no list price here for inference_geo = {usage.get('inference_geo')}")
    tokens = Tokens.of(usage)
    price_in, price_out, read = prices
    millionths = (
        price_in * (tokens.input + _CACHE_WRITE * tokens.cache_write + read * tokens.cache_read)
        + price_out * tokens.output
    )
    return Cost(round(millionths * _PER_TOKEN, 6), _KNOWN)
