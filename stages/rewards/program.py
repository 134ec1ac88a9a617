"""A reward as data: the source text of its program, and the key poses that it may read."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from stages.errors import ArtifactError


@dataclass(frozen=True)
class Reward:
    """Everything that decides a reward. It is small, so every group carries the whole of it.

    Attributes:
        task: the id of the task that it was written for; empty: it is not known, and any task may try it.
        source: of a module that defines `compute_reward`, see `stages.rewards.interface`.
        key_poses: JSON of `interface.KeyPose`, for a program that reads them.
        path: how messages call the program; no part of what it is.
    """

    task: str
    source: str
    key_poses: tuple[Mapping[str, Any], ...] = ()
    path: str = "reward.py"

    @classmethod
    def from_json(cls, data: Mapping[str, Any], where: str) -> "Reward":
        """Reads what `to_json` wrote.

        Args:
            where: the artifact that it was found in, for messages.

        Raises:
            ArtifactError: it is no reward, or its program is not the one that it was written with.
        """
        try:
            task, source, key_poses = data["task"], data["source"], tuple(data["key_poses"])
            found = cls(str(task), str(source), key_poses, f"{where}, reward.py")
            recorded = data["digest"]
        except (KeyError, TypeError):
            raise ArtifactError(
                f"{where} has no whole reward: expected task, source, key_poses and digest; sample it again"
            ) from None
        if found.digest != recorded:
            raise ArtifactError(
                f"{where}: its reward has digest {found.digest[:12]}, expected {str(recorded)[:12]}, so somebody changed it; "
                "copy the artifact again"
            )
        return found

    def to_json(self) -> dict[str, Any]:
        """What an artifact keeps of it."""
        return {"task": self.task, "source": self.source, "key_poses": list(self.key_poses), "digest": self.digest}

    @property
    def digest(self) -> str:
        """SHA-256, 64 hex digits, of the program and the key poses: two rewards of one digest give the same numbers."""
        what = json.dumps({"source": self.source, "key_poses": list(self.key_poses)}, sort_keys=True)
        return hashlib.sha256(what.encode()).hexdigest()
