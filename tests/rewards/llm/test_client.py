"""The real official client against a server on this machine."""

import logging
import re
from collections.abc import Callable

import pytest

from stages.rewards.llm.client import Client
from stages.rewards.llm.errors import LlmError
from stages.rewards.llm.reply import text_of
from stages.rewards.llm.settings import LlmSettings
from tests.rewards.llm.conftest import KEY, quick
from tests.rewards.llm.loopback import GOOD_REPLY, MODEL, USAGE, Answer, Loopback, cut, raw, say, silent, status

Connect = Callable[..., Client]
SYSTEM = [{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}]
MESSAGES = [{"role": "user", "content": [{"type": "text", "text": "Hello"}]}]

RATE_LIMITED = status(429, "rate_limit_error", "slow down", retry_after="0.01")
OVERLOADED = status(529, "overloaded_error", "Overloaded", retry_after="0.01")
FAILED = status(500, "api_error", "Internal server error", retry_after="0.01")


def ask(client: Client) -> str:
    return text_of(client.ask(client.request(SYSTEM, MESSAGES)).message)


def failure(client: Client) -> str:
    with pytest.raises(LlmError) as caught:
        ask(client)
    assert "\n" not in str(caught.value)
    assert caught.value.__cause__ is None  # a cause would hold the request with its headers
    return str(caught.value)


def test_a_good_reply_arrives_whole(connect: Connect) -> None:
    seen: list[tuple[int, str]] = []
    with Loopback(say(thinking="Let me think. " * 20)) as server:
        client = connect(server, lambda tokens, note: seen.append((tokens, note)))
        reply = client.ask(client.request(SYSTEM, MESSAGES))
    assert text_of(reply.message) == GOOD_REPLY
    assert reply.message["model"] == MODEL and reply.message["stop_reason"] == "end_turn"
    assert reply.message["usage"]["input_tokens"] == USAGE["input_tokens"]
    assert reply.message["usage"]["output_tokens"] > 300
    assert reply.request_id == "req_loopback" and not reply.from_cache

    tokens = [count for count, _ in seen]
    assert tokens == sorted(tokens) and tokens[-1] == reply.message["usage"]["output_tokens"]
    assert seen[0][1] == "thinking" and "writing" in {note for _, note in seen} and seen[-1][1] == "counted"


def test_what_is_sent(connect: Connect) -> None:
    with Loopback() as server:
        ask(connect(server, max_tokens=1234))
    (sent,) = server.requests
    assert sent.body == {
        "model": "claude-sonnet-4-6",
        "max_tokens": 1234,
        "stream": True,
        "system": SYSTEM,
        "messages": MESSAGES,
    }


def test_a_temperature_goes_with_the_api_version_that_knows_it(connect: Connect) -> None:
    with Loopback() as server:
        assert ask(connect(server, temperature=0.2)) == GOOD_REPLY
    (sent,) = server.requests
    assert sent.body["temperature"] == 0.2
    assert sent.headers["anthropic-version"] == "2023-06-01"


@pytest.mark.parametrize("bad", [RATE_LIMITED, OVERLOADED, FAILED], ids=["429", "529", "500"])
def test_what_passes_is_tried_again(connect: Connect, bad: Answer) -> None:
    notes: list[str] = []
    with Loopback(bad, bad, say()) as server:
        assert ask(connect(server, lambda _, note: notes.append(note))) == GOOD_REPLY
    assert len(server.requests) == 3
    assert sum("asking again" in note for note in notes) == 2


@pytest.mark.parametrize(
    "broken",
    [
        cut(6, "reset"),
        cut(6, "end"),
        cut(0, "end"),
        cut(6, "error"),
        raw(b"event: message_start\ndata: {not json\n\n"),
        raw(b'event: content_block_delta\ndata: {"type": "content_block_delta", "index": 0}\n\n'),
        raw(b'event: message_start\ndata: {"type": "message_start"}\n\n'),
        raw(b"event: message_start\ndata: \xff\xfe\n\n"),
        raw(b"event: message_start\ndata: [1]\n\n"),
        raw(b"<html>a proxy's welcome page</html>\n\n"),
    ],
    ids=["reset", "end", "empty", "error event", "json", "order", "fields", "bytes", "list", "html"],
)
def test_a_broken_stream_is_tried_again_then_an_error(connect: Connect, broken: Answer) -> None:
    with Loopback(broken, say()) as server:
        assert ask(connect(server)) == GOOD_REPLY
    assert len(server.requests) == 2
    with Loopback(broken) as server:
        said = failure(connect(server))
    assert len(server.requests) == 3
    assert re.search("stream|connection was lost|overloaded", said) and "after 3 attempts" in said


def test_retries_of_all_kinds_share_one_budget(connect: Connect) -> None:
    with Loopback(RATE_LIMITED, cut(6, "reset"), OVERLOADED, say()) as server:
        assert "after 3 attempts" in failure(connect(server))
    assert len(server.requests) == 3


@pytest.mark.parametrize(
    ("answer", "attempts", "says"),
    [
        (status(401, "authentication_error", "invalid x-api-key"), 1, r"key is not valid \(401\).*ANTHROPIC_API_KEY"),
        (status(403, "permission_error", "not allowed"), 1, r"\(403\): not allowed.*claude-sonnet-4-6"),
        (status(404, "not_found_error", "model: x"), 1, r"no model 'claude-sonnet-4-6'.*gen_reward\.model"),
        (status(413, "request_too_large", "too large"), 1, r"\(413\).*gen_reward\.rounds"),
        (status(400, "invalid_request_error", "max_tokens: 8000 > 4096"), 1, r"lower gen_reward\.max_tokens"),
        (status(400, "invalid_request_error", "some\nthing"), 1, r"refuses the request \(400\): some thing"),
        (RATE_LIMITED, 3, r"rate limit is reached \(429\): slow down.*after 3 attempts; try again later"),
        (OVERLOADED, 3, r"overloaded \(529\).*after 3 attempts.*--from-file reward\.py.*--builtin"),
        (FAILED, 3, r"server failed \(500\)"),
        (status(429, "rate_limit_error", "tomorrow", retry_after="86400"), 1, r"\(429\) and wants 86400 s of pause"),
        (silent(20), 2, r"no answer within 1 s after 2 attempts; raise gen_reward\.timeout_s"),
        (silent(20, events=4), 2, r"fell silent in the middle.*after 2 attempts; raise gen_reward\.timeout_s"),
    ],
)
def test_failures_say_what_to_do(connect: Connect, answer: Answer, attempts: int, says: str) -> None:
    slow = attempts == 2
    with Loopback(answer) as server:
        said = failure(connect(server, **({"timeout_s": 1.0, "max_retries": 1} if slow else {})))
        assert said.startswith(server.url)
    assert re.search(says, said)
    assert len(server.requests) == attempts


def test_a_model_that_takes_no_temperature(connect: Connect) -> None:
    refusal = status(400, "invalid_request_error", "`temperature` is deprecated for this model.")
    with Loopback(refusal) as server:
        assert "set gen_reward.temperature=null" in failure(connect(server, temperature=0.5))


def test_nobody_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    with Loopback() as server:
        url = server.url  # free again when the block ends
    monkeypatch.setenv("ANTHROPIC_BASE_URL", url.replace("//", "//someone:secret@"))
    said = failure(Client(quick(max_retries=0)))
    assert re.search(r"no connection \(.*refused.*\).*ANTHROPIC_BASE_URL.*--builtin", said)
    assert "secret" not in said and url in said


def test_without_a_key_both_offline_ways_are_named(monkeypatch: pytest.MonkeyPatch, connect: Connect) -> None:
    monkeypatch.delenv("ANTHROPIC_API_KEY")
    with Loopback() as server:
        said = failure(connect(server))
    assert "ANTHROPIC_API_KEY" in said and "--from-file reward.py" in said and "--builtin" in said
    assert not server.requests


@pytest.mark.parametrize("key", [f"{KEY}\n", f"{KEY} x", f"{KEY}ü", f"{KEY}\x00".replace("\x00", "\x7f")])
def test_a_key_that_cannot_be_one_is_not_quoted(monkeypatch: pytest.MonkeyPatch, connect: Connect, key: str) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", key)
    with Loopback() as server:
        said = failure(connect(server))
    assert "ANTHROPIC_API_KEY holds a character" in said and KEY not in said
    assert not server.requests


def test_the_key_leaks_into_no_error_and_no_log(connect: Connect, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with Loopback(RATE_LIMITED, status(401, "authentication_error", f"what is {KEY}?")) as server:
        said = failure(connect(server))
    assert "what is [key]?" in said
    assert server.requests[0].headers["authorization"] == f"Bearer {KEY}"
    assert caplog.records  # of the official client
    assert KEY not in caplog.text and KEY not in repr([record.__dict__ for record in caplog.records])


def test_a_profile_that_does_not_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ANTHROPIC_API_KEY")
    monkeypatch.setenv("ANTHROPIC_PROFILE", "nobody")
    with pytest.raises(LlmError, match=r"ANTHROPIC_PROFILE.*--builtin") as caught:
        ask(Client(LlmSettings(max_retries=0)))
    assert "\n" not in str(caught.value)
