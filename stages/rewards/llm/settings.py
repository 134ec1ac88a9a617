"""How the LLM is asked."""

from dataclasses import dataclass


@dataclass(frozen=True)
class LlmSettings:
    """What `gen_reward` of params says about the LLM. Where it is and with which key is the environment's affair."""

    model: str = "claude-sonnet-4-6"
    max_tokens: int = 8000  # of one reply; what a model thinks before it writes counts too
    temperature: float | None = None  # None sends none, the only choice that every model takes
    rounds: int = 3  # replies at most: the first, and those that answer findings
    timeout_s: float = 120.0  # of silence from the server, which sends pings while the model thinks
    max_retries: int = 4  # of one request, whatever made each attempt fail
