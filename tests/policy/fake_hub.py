"""A hub on this machine's loopback: the few addresses of the Hugging Face API that a download asks for."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "c0ffee" + "0" * 34


@dataclass
class FakeHub:
    """Models by `owner/name`, each a folder; `requests` are the (method, path) pairs that came in."""

    url: str = ""
    models: dict[str, Path] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    private: set[str] = field(default_factory=set)
    cut_off: set[str] = field(default_factory=set)  # files of which half is sent before the line drops
    claimed_size: dict[str, int] = field(default_factory=dict)  # files said to be larger than they are
    requests: list[tuple[str, str]] = field(default_factory=list)

    def downloads(self) -> list[str]:
        """The files whose bytes were asked for, in that order."""
        return [path.rsplit("/", 1)[1] for method, path in self.requests if method == "GET" and "/resolve/" in path]


@contextmanager
def serve() -> Iterator[FakeHub]:
    """Runs a hub until the block ends."""
    hub = FakeHub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _handler(hub: FakeHub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self._answer()

        def do_GET(self) -> None:
            self._answer()

        def _answer(self) -> None:
            path = self.path.split("?")[0]
            hub.requests.append((self.command, path))
            parts = path.strip("/").split("/")
            if parts[:2] == ["api", "models"]:
                repo, rest = "/".join(parts[2:4]), parts[4:]
            else:
                repo, rest = "/".join(parts[:2]), parts[2:]
            if repo in hub.private:
                return self._send(401, b"", {"X-Error-Message": "Invalid credentials"})
            if repo not in hub.models:
                return self._send(404, b"", {"X-Error-Code": "RepoNotFound"})
            if rest and rest[0] in ("revision", "resolve", "tree") and rest[1] not in ("main", COMMIT):
                return self._send(404, b"", {"X-Error-Code": "RevisionNotFound"})
            if repo in hub.gated and rest[0] == "resolve":
                return self._send(403, b"", {"X-Error-Code": "GatedRepo"})
            folder = hub.models[repo]
            if rest[0] == "tree":
                return self._json([self._entry(file) for file in sorted(folder.iterdir())])
            if rest[0] == "resolve":
                return self._file(folder / rest[2])
            return self._json({"id": repo, "sha": COMMIT, "siblings": []})

        def _entry(self, file: Path) -> dict[str, object]:
            return {"type": "file", "path": file.name, "size": file.stat().st_size, "oid": _etag(file)}

        def _file(self, file: Path) -> None:
            if not file.is_file():
                return self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
            headers = {"ETag": f'"{_etag(file)}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
            if file.name in hub.claimed_size:
                headers["X-Linked-Size"] = str(hub.claimed_size[file.name])
            self._send(200, file.read_bytes(), headers, cut_off=file.name in hub.cut_off)

        def _json(self, value: object) -> None:
            self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

        def _send(self, status: int, body: bytes, headers: dict[str, str], cut_off: bool = False) -> None:
            self.send_response(status)
            for name, value in (headers | {"Content-Length": str(len(body))}).items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body[: len(body) // 2] if cut_off else body)
            if cut_off and self.command == "GET":
                self.close_connection = True

    return Handler


def _etag(file: Path) -> str:
    return hashlib.sha1(file.read_bytes()).hexdigest()
