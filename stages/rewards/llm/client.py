"""Asks Claude through the official client: streamed, retried, and with errors that say what to do."""

import json
import os
import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NoReturn
from urllib.parse import urlsplit, urlunsplit

from stages.rewards.llm.cache import Reply
from stages.rewards.llm.errors import OFFLINE, LlmError
from stages.rewards.llm.failures import Failure, failure_of, status_failure
from stages.rewards.llm.reply import one_line
from stages.rewards.llm.settings import LlmSettings

if TYPE_CHECKING:
    from anthropic.lib.streaming import MessageStream

Progress = Callable[[int, str], None]
"""Called with the tokens of the reply so far, an estimate until the server has counted them, and a short note."""

# The API version that the client sends knows no temperature. The one before it does, for the models that take one.
_VERSION_WITH_TEMPERATURE = "2023-06-01"
_CHARACTERS_PER_TOKEN = 4
_PATIENCE_S = 300.0  # the longest wait that a server may ask for before the next attempt
_CONNECT_S = 15.0
_PAUSE_S = 0.5  # before the first retry of a stream that broke; it doubles each time
_LONGEST_PAUSE_S = 8.0


class Client:
    """One conversation partner. Address and key come from the environment, where the official client finds them.

    The key is never part of a request's JSON, of a reply or of an error; errors quote servers with the key struck out.
    """

    def __init__(self, settings: LlmSettings, progress: Progress | None = None, pause_s: float = _PAUSE_S) -> None:
        """Opens no connection and needs no key yet.

        Raises:
            LlmError: a profile or an address in the environment that the official client cannot read.
        """
        import anthropic
        import httpx2

        self._settings = settings
        self._progress = progress or (lambda tokens, note: None)
        self._pause_s = pause_s
        self._attempts = 0
        self.broken: list[dict[str, Any]] = []  # what streams that broke had brought, of the last request
        try:
            self._client = anthropic.Anthropic(
                timeout=anthropic.Timeout(settings.timeout_s, connect=min(settings.timeout_s, _CONNECT_S)),
                max_retries=settings.max_retries,
                middleware=[self._watch],
            )
        except (anthropic.AnthropicError, httpx2.InvalidURL, OSError, ValueError) as error:
            raise LlmError(
                f"the environment's settings of the Anthropic client cannot be used ({one_line(error)});"
                f" check ANTHROPIC_BASE_URL, ANTHROPIC_PROFILE and ANTHROPIC_CONFIG_DIR; {OFFLINE}"
            ) from None

    @property
    def endpoint(self) -> str:
        """The address that is asked, without a user and password that may stand in it."""
        parts = urlsplit(str(self._client.base_url))
        address = urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", "")).rstrip("/")
        return address or "ANTHROPIC_BASE_URL (empty)"

    def request(self, system: list[dict[str, Any]], messages: list[dict[str, Any]]) -> dict[str, Any]:
        """All that decides the reply, as JSON: what `ask` takes, what the cache goes by, and what is kept."""
        request: dict[str, Any] = {
            "endpoint": self.endpoint,
            "model": self._settings.model,
            "max_tokens": self._settings.max_tokens,
            "system": system,
            "messages": messages,
        }
        if self._settings.temperature is not None:
            request["temperature"] = self._settings.temperature
        return request

    def ask(self, request: Mapping[str, Any]) -> Reply:
        """Sends a request of `request` and waits for the whole reply, whatever it says.

        Overload, rate limits, lost connections, time-outs and broken streams are tried again, `max_retries` times in all. What a
        stream brought before it broke was paid for, and is left in `broken`.

        Raises:
            LlmError: no key, or no whole reply after the last attempt.
        """
        self._attempts = 0
        self.broken = []
        self.check_key()
        for broken in range(self._settings.max_retries + 1):
            left = self._settings.max_retries - self._attempts
            with self._translated():
                outcome = self._stream(request, retries=max(left, 0))
            if isinstance(outcome, Reply):
                return outcome
            if self._attempts > self._settings.max_retries or not outcome.passing:
                self._fail(outcome)
            self._progress(0, f"{outcome.short}, asking again")
            time.sleep(min(self._pause_s * 2**broken, _LONGEST_PAUSE_S) * random.uniform(0.75, 1))
        raise AssertionError("the last attempt neither answered nor failed")

    def _stream(self, request: Mapping[str, Any], retries: int) -> Reply | Failure:
        """One attempt at a whole stream; until it begins, the official client retries by itself."""
        temperature = request.get("temperature")
        client = self._client.with_options(max_retries=retries)
        with client.messages.stream(
            model=request["model"],
            max_tokens=request["max_tokens"],
            system=request["system"],
            messages=request["messages"],
            extra_headers=None if temperature is None else {"anthropic-version": _VERSION_WITH_TEMPERATURE},
            extra_body=None if temperature is None else {"temperature": temperature},
        ) as stream:
            try:
                message = self._read(stream)
            except _Broken as broken:
                self._keep(stream)
                return broken.failure
            return Reply(message, stream.request_id)

    def _read(self, stream: "MessageStream[None]") -> dict[str, Any]:
        tokens = 0.0
        for event in _events(stream):
            with _broken_if_malformed():
                written, note = _written(event)
            tokens = written if note == "counted" else tokens + written
            if note:
                self._progress(int(tokens), note)
        with _broken_if_malformed():
            message = _clean(stream.get_final_message().to_dict(mode="json"))
            if not message.get("stop_reason") or not isinstance(message.get("content"), list):
                raise _Broken(Failure("the stream ended before the reply was whole", passing=True))
            return message

    def _keep(self, stream: "MessageStream[None]") -> None:
        """Keeps what a broken stream had brought; nothing where it broke before its first event."""
        try:
            self.broken.append(_clean(stream.current_message_snapshot.to_dict(mode="json")))
        except (AssertionError, ValueError, TypeError, AttributeError):
            return

    def _watch(self, request: Any, call_next: Callable[[Any], Any]) -> Any:
        """Sees every attempt that the official client makes, its retries too."""
        self._attempts += 1
        response = call_next(request)
        if response.status_code < 400:
            return response
        wait = _wait_asked_for(response.headers)
        failure = status_failure(response.status_code, {}, self._settings)
        if wait > _PATIENCE_S:
            response.http_response.read()
            self._fail(Failure(f"{failure.short} and wants {wait:.0f} s of pause", failure.remedy))
        if failure.passing and self._attempts <= self._settings.max_retries:
            self._progress(0, f"{failure.short}, asking again")
        return response

    def check_key(self) -> None:
        """Raises LlmError without a usable key. The official client would complain only when it sends, and quote it in full."""
        client = self._client
        headers = {name.lower() for name in client.default_headers}
        if client.credentials is None and not headers & {"authorization", "x-api-key"}:
            raise LlmError(f"no key for the Claude API: ANTHROPIC_API_KEY is not set; {OFFLINE}")
        for name, secret in (("ANTHROPIC_API_KEY", client.api_key), ("ANTHROPIC_AUTH_TOKEN", client.auth_token)):
            if secret and not (secret.isascii() and secret.isprintable() and " " not in secret):
                raise LlmError(
                    f"{name} holds a character that no key has, such as a space or a line break; set it again; {OFFLINE}"
                )

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """The official client's errors as ours. Their causes are cut off, for they hold the request with its headers."""
        import anthropic
        import httpx2

        try:
            yield
        except (anthropic.AnthropicError, httpx2.HTTPError, httpx2.InvalidURL, UnicodeError) as error:
            failure = failure_of(error, self._settings)
        else:
            return
        self._fail(failure)

    def _fail(self, failure: Failure) -> NoReturn:
        times = f" after {self._attempts} attempts" if self._attempts > 1 else ""
        raise LlmError(self._without_secrets(f"{self.endpoint}: {failure.what}{times}; {failure.remedy}")) from None

    def _without_secrets(self, text: str) -> str:
        environment = (os.environ.get(name) for name in ("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN"))
        for secret in (self._client.api_key, self._client.auth_token, *environment):
            if secret:
                text = text.replace(secret, "[key]")
        return text


class _Broken(Exception):
    """A stream that began and did not end as a reply."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.what)
        self.failure = failure


def _clean(message: dict[str, Any]) -> dict[str, Any]:
    """Without halves of surrogate pairs, which JSON can carry and no file: each becomes a question mark."""
    cleaned: dict[str, Any] = json.loads(json.dumps(message, ensure_ascii=False).encode("utf-8", "replace"))
    return cleaned


def _events(stream: "MessageStream[None]") -> Iterator[Any]:
    iterator = iter(stream)
    while True:
        with _broken_if_malformed():
            event = next(iterator, None)
        if event is None:
            return
        yield event


def _written(event: Any) -> tuple[float, str]:
    """Tokens that an event adds, about, or that the server has counted in all; and what the model is doing."""
    if event.type == "content_block_delta" and event.delta.type == "text_delta":
        return len(event.delta.text) / _CHARACTERS_PER_TOKEN, "writing"
    if event.type == "content_block_delta" and event.delta.type == "thinking_delta":
        return len(event.delta.thinking) / _CHARACTERS_PER_TOKEN, "thinking"
    if event.type == "message_delta":
        return float(event.usage.output_tokens), "counted"
    return 0.0, ""


@contextmanager
def _broken_if_malformed() -> Iterator[None]:
    """The official client reads streams in good faith: what is malformed shows as whatever error Python meets first."""
    import anthropic
    import httpx2

    try:
        yield
    except _Broken:
        raise
    except anthropic.APIStatusError as error:  # an event `error` inside the stream
        failure = failure_of(error)
    except httpx2.TimeoutException:
        failure = Failure(
            "the server fell silent in the middle of its reply", "raise gen_reward.timeout_s", passing=True
        )
    except httpx2.HTTPError:
        failure = Failure("the connection was lost in the middle of the reply", passing=True)
    except (ValueError, TypeError, LookupError, AttributeError, AssertionError, RuntimeError) as error:
        failure = Failure(f"the stream is malformed ({type(error).__name__})", passing=True)
    else:
        return
    raise _Broken(failure) from None


def _wait_asked_for(headers: Mapping[str, str]) -> float:
    """Seconds of the header retry-after; 0 where it is missing or a date."""
    try:
        return float(headers.get("retry-after") or 0)
    except ValueError:
        return 0.0
