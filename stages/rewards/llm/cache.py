"""Replies kept by the request that they answered, so that the same question is never paid for twice."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.rewards.llm.files import json_text, write_text

CACHE = Path("data/cache/llm")

Json = dict[str, Any]


@dataclass(frozen=True)
class Reply:
    """A whole reply, as the server sent it."""

    message: Mapping[str, Any]  # of the Messages API: content, model, stop_reason, usage
    request_id: str | None  # by which Anthropic's support finds it
    from_cache: bool = False

    def to_json(self) -> Json:
        return {"message": dict(self.message), "request_id": self.request_id}


def request_digest(request: Mapping[str, Any]) -> str:
    """SHA-256 of all that decides a reply: the address asked, model, parameters, system prompt and messages."""
    canonical = json.dumps(request, sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


class ReplyCache:
    """A folder of `<digest of the request>.json`, each with the request and its reply."""

    def __init__(self, folder: Path = CACHE) -> None:
        self.folder = folder

    def get(self, request: Mapping[str, Any]) -> Reply | None:
        """The reply to an identical request. A file that cannot be read counts as none: it will be written again."""
        try:
            data = json.loads(self._path(request).read_text(encoding="utf-8"))
            if data["request"] != request or not isinstance(data["message"], dict):
                return None
            return Reply(data["message"], data["request_id"], from_cache=True)
        except (OSError, ValueError, LookupError, TypeError):
            return None

    def put(self, request: Mapping[str, Any], reply: Reply) -> None:
        """
        Raises:
            LlmError: the file cannot be written.
        """
        write_text(self._path(request), json_text({"request": dict(request), **reply.to_json()}))

    def _path(self, request: Mapping[str, Any]) -> Path:
        return self.folder / f"{request_digest(request)}.json"
