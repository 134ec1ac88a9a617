"""A server on this machine that speaks the Messages API with streams, and misbehaves on request.

    python -m tests.rewards.llm.loopback --port 8765

answers every request with a good reward program for libero_object/7, which shows `tgrpo gen-reward` without a network:

    ANTHROPIC_BASE_URL=http://127.0.0.1:8765 ANTHROPIC_API_KEY=test tgrpo gen-reward --task libero_object/7
"""

import argparse
import contextlib
import json
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any

GOOD_REPLY = Path(__file__).with_name("libero_object_7.md").read_text(encoding="utf-8")
PIECE = 40  # characters in one event
MODEL = "claude-sonnet-4-6"
USAGE = {"input_tokens": 2100, "cache_creation_input_tokens": 3000, "cache_read_input_tokens": 0}

Answer = Callable[["Handler"], None]


@dataclass(frozen=True)
class Request:
    headers: dict[str, str]  # names in lower case
    body: dict[str, Any]


def say(
    text: str = GOOD_REPLY,
    stop_reason: str = "end_turn",
    stop_details: dict[str, str] | None = None,
    thinking: str = "",
) -> Answer:
    """A whole reply."""

    def answer(handler: "Handler") -> None:
        handler.begin_stream()
        for event in reply_events(text, stop_reason, stop_details, thinking):
            handler.send_event(event)
        handler.end_stream()

    return answer


def status(code: int, kind: str, message: str, **headers: str) -> Answer:
    """An error of the API instead of a stream. Underscores in names of headers become hyphens."""

    def answer(handler: "Handler") -> None:
        body = json.dumps(
            {"type": "error", "error": {"type": kind, "message": message}, "request_id": "req_bad"}
        ).encode()
        handler.send_response(code)
        handler.send_header("content-type", "application/json")
        handler.send_header("content-length", str(len(body)))
        handler.send_header("request-id", "req_bad")
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(body)

    return answer


def cut(events: int = 6, how: str = "reset") -> Answer:
    """A stream that ends after some events: by `reset` of the connection, by an orderly `end`, or by an `error` event."""

    def answer(handler: "Handler") -> None:
        handler.begin_stream()
        for _, event in zip(range(events), reply_events(GOOD_REPLY), strict=False):
            handler.send_event(event)
        if how == "error":
            handler.send_event({"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}})
        if how == "reset":
            handler.connection.shutdown(socket.SHUT_RDWR)
        else:
            handler.end_stream()

    return answer


def silent(seconds: float, events: int = 0) -> Answer:
    """Nothing for a while: before the stream begins, or after some events of it."""

    def answer(handler: "Handler") -> None:
        if events:
            handler.begin_stream()
            for _, event in zip(range(events), reply_events(GOOD_REPLY), strict=False):
                handler.send_event(event)
        handler.loopback.closing.wait(seconds)
        handler.close_connection = True

    return answer


def raw(*pieces: bytes) -> Answer:
    """A stream of these very bytes."""

    def answer(handler: "Handler") -> None:
        handler.begin_stream()
        for piece in pieces:
            handler.send_chunk(piece)
        handler.end_stream()

    return answer


def reply_events(
    text: str, stop_reason: str = "end_turn", stop_details: dict[str, str] | None = None, thinking: str = ""
) -> Iterator[dict[str, Any]]:
    """The events of one message: its start, its blocks in pieces, its end with the tokens counted."""
    message = {
        "id": "msg_loopback",
        "type": "message",
        "role": "assistant",
        "model": MODEL,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": {**USAGE, "output_tokens": 1},
    }
    yield {"type": "message_start", "message": message}
    yield {"type": "ping"}
    blocks = [("thinking", thinking)] * bool(thinking) + [("text", text)] * bool(text)
    for index, (kind, content) in enumerate(blocks):
        yield {"type": "content_block_start", "index": index, "content_block": {"type": kind, kind: ""}}
        for at in range(0, len(content), PIECE):
            delta = {"type": f"{kind}_delta", kind: content[at : at + PIECE]}
            yield {"type": "content_block_delta", "index": index, "delta": delta}
        yield {"type": "content_block_stop", "index": index}
    delta = {"stop_reason": stop_reason, "stop_sequence": None, "stop_details": stop_details}
    tokens = (len(text) + len(thinking)) // 4
    yield {"type": "message_delta", "delta": delta, "usage": {"output_tokens": tokens}}
    yield {"type": "message_stop"}


class Loopback:
    """The server, as a context manager. Answers come in order; the last one is repeated for ever."""

    def __init__(self, *answers: Answer, port: int = 0, pause_s: float = 0.0) -> None:
        self._answers: Sequence[Answer] = answers or (say(),)
        self._lock = threading.Lock()
        self.pause_s = pause_s  # between events
        self.requests: list[Request] = []
        self.closing = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", port), type("BoundHandler", (Handler,), {"loopback": self}))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def answer_to(self, request: Request) -> Answer:
        with self._lock:
            self.requests.append(request)
            return self._answers[min(len(self.requests), len(self._answers)) - 1]

    def __enter__(self) -> "Loopback":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    loopback: Loopback

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        request = Request({name.lower(): value for name, value in self.headers.items()}, body)
        answer = self.loopback.answer_to(request)
        self.close_connection = True
        if self.path != "/v1/messages" or not body.get("stream"):
            answer = status(404, "not_found_error", f"nothing at {self.path}")
        elif not {"authorization", "x-api-key"} & set(request.headers):
            answer = status(401, "authentication_error", "no key")
        elif "temperature" in body and request.headers["anthropic-version"] >= "2026-10-21":
            answer = status(400, "invalid_request_error", "temperature: Extra inputs are not permitted")
        with contextlib.suppress(OSError):  # the client went away first
            answer(self)

    def begin_stream(self) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("transfer-encoding", "chunked")
        self.send_header("request-id", "req_loopback")
        self.send_header("connection", "close")
        self.end_headers()

    def send_event(self, event: dict[str, Any]) -> None:
        self.send_chunk(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode())
        time.sleep(self.loopback.pause_s)

    def send_chunk(self, data: bytes) -> None:
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        self.wfile.flush()

    def end_stream(self) -> None:
        self.wfile.write(b"0\r\n\r\n")
        self.wfile.flush()

    def log_message(self, format: str, *args: object) -> None:
        if self.loopback.pause_s:
            print(f"loopback: {format % args}", file=sys.stderr)


def main() -> None:
    parser = argparse.ArgumentParser(description="a loopback server of the Messages API, for libero_object/7")
    parser.add_argument("--port", type=int, default=8765)
    port = parser.parse_args().port
    with Loopback(port=port, pause_s=0.01) as server:
        print(f"loopback: answering at {server.url}; stop with Ctrl-C", file=sys.stderr)
        with contextlib.suppress(KeyboardInterrupt):
            threading.Event().wait()


if __name__ == "__main__":
    main()
