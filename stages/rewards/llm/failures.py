"""What a failed request means, and what helps."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from stages.rewards.llm.errors import OFFLINE
from stages.rewards.llm.reply import one_line
from stages.rewards.llm.settings import LlmSettings

_AGAIN = f"try again later; {OFFLINE}"


@dataclass(frozen=True)
class Failure:
    """Why an attempt failed."""

    what: str  # half a sentence
    remedy: str = _AGAIN
    passing: bool = False  # the next attempt may well succeed
    short: str = ""  # `what` without the server's own words

    def __post_init__(self) -> None:
        object.__setattr__(self, "short", self.short or self.what)


def failure_of(error: Exception, settings: LlmSettings | None = None) -> Failure:
    """Of an error of the official client, or of the HTTP library under it."""
    import anthropic

    settings = settings or LlmSettings()
    if isinstance(error, anthropic.APIStatusError):
        body = error.body if isinstance(error.body, Mapping) else {}
        return status_failure(error.status_code, body, settings, error.request_id)
    if isinstance(error, anthropic.APITimeoutError):
        return Failure(
            f"no answer within {settings.timeout_s:g} s", f"raise gen_reward.timeout_s, or {_AGAIN}", passing=True
        )
    if isinstance(error, anthropic.APIConnectionError):
        cause = f" ({one_line(error.__cause__)})" if isinstance(error.__cause__, OSError | Exception) else ""
        return Failure(f"no connection{cause}", f"check the network and ANTHROPIC_BASE_URL; {OFFLINE}", passing=True)
    return Failure(
        f"the request failed ({type(error).__name__})", f"check the environment's ANTHROPIC_ variables; {OFFLINE}"
    )


# Of errors inside a stream, whose HTTP status is 200, only this name tells what happened.
_STATUS_OF = {
    "invalid_request_error": 400,
    "authentication_error": 401,
    "billing_error": 402,
    "permission_error": 403,
    "not_found_error": 404,
    "request_too_large": 413,
    "rate_limit_error": 429,
    "api_error": 500,
    "timeout_error": 504,
    "overloaded_error": 529,
}


def status_failure(
    status: int, body: Mapping[str, Any], settings: LlmSettings, request_id: str | None = None
) -> Failure:
    """Of an HTTP status from 400 on, or of an error inside a stream with status 200.

    Args:
        body: the API's {"error": {"type", "message"}}, empty where there is none.
    """
    error = body.get("error")
    error = error if isinstance(error, Mapping) else {}
    if status < 400:
        status = _STATUS_OF.get(str(error.get("type")), 500)
    said = one_line(error.get("message") or "")
    words = (f": {said}" if said else "") + (f" (request {one_line(request_id)})" if request_id else "")
    what, remedy = _meaning(status, said, settings)
    return Failure(what + words, remedy, passing=status in (408, 409, 429) or status >= 500, short=what)


def _meaning(status: int, said: str, settings: LlmSettings) -> tuple[str, str]:
    match status:
        case 400 if "temperature" in said and settings.temperature is not None:
            return f"{settings.model} takes no temperature (400)", "set gen_reward.temperature=null"
        case 400 if "max_tokens" in said:
            return f"{settings.model} refuses max_tokens = {settings.max_tokens} (400)", "lower gen_reward.max_tokens"
        case 401:
            return "the key is not valid (401)", f"set ANTHROPIC_API_KEY to a valid key; {OFFLINE}"
        case 402:
            return "the account cannot be billed (402)", f"check its billing; {OFFLINE}"
        case 403:
            return "the key may not do this (403)", f"use a key that may use {settings.model}; {OFFLINE}"
        case 404:
            return (
                f"there is no model {settings.model!r} here (404)",
                "set gen_reward.model to one that exists, such as claude-sonnet-4-6, and check ANTHROPIC_BASE_URL",
            )
        case 413:
            return "the request is too large (413)", "lower gen_reward.rounds, whose findings make it grow"
        case 429:
            return "the rate limit is reached (429)", _AGAIN
        case 529:
            return "the server is overloaded (529)", _AGAIN
        case _ if status >= 500:
            return f"the server failed ({status})", _AGAIN
        case _:
            return f"the server refuses the request ({status})", f"check gen_reward of the params; {OFFLINE}"
