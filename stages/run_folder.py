"""The folder of a run of `tgrpo train`: where everything lies, what it is a run of, and how far it has come.

run.json                 the params and the digests of what the run starts from
groups/KKK advantages/KKK checkpoints/KKK    as the separate commands write them; KKK counts from 001
validations/KKK.json     success on the validation states after iteration KKK; 000 is the start
ending.json              how the run ended, once it has
evals/                   the evaluations on the official states, before and after
history.csv validation.csv    a line per iteration or validation, what the seed decides
telemetry.csv tensorboard/    what was measured
summary.json summary.md curve.png tgrpo.json    the result
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from stages.errors import ArtifactError, MismatchError
from stages.guard import Ending, Validation
from stages.params import Params
from stages.store.artifacts import digest_of, write_json
from stages.telemetry import TELEMETRY
from stages.workspace import read_checkpoint

RECORD, ENDING = "run.json", "ending.json"


@dataclass(frozen=True)
class Run:
    """A run on disk."""

    params: Params
    start: Path  # the checkpoint that it starts from
    reward: Path | None  # a reward artifact; None is the built-in program
    folder: Path

    @property
    def last(self) -> int:
        """The last iteration that it may come to."""
        return self.params.train.iterations

    def checkpoint(self, k: int) -> Path:
        """The checkpoint after iteration k of the run; 0 is the start."""
        return self.folder / "checkpoints" / f"{k:03d}" if k else self.start

    def group(self, k: int, index: int) -> Path:
        return self.folder / "groups" / f"{k:03d}" / f"{index:03d}.zarr"

    def advantages(self, k: int, index: int) -> Path:
        return self.folder / "advantages" / f"{k:03d}" / f"{index:03d}.zarr"

    def validation(self, k: int) -> Path:
        return self.folder / "validations" / f"{k:03d}.json"

    @property
    def telemetry(self) -> Path:
        return self.folder / TELEMETRY

    def done(self) -> int:
        """The last iteration whose checkpoint is whole."""
        return max((k for k in range(1, self.last + 1) if self.checkpoint(k).exists()), default=0)

    def claim(self, resume: bool) -> None:
        """Makes the folder and writes down what it is a run of, or checks that it is the same run.

        Raises:
            ArtifactError: it holds a run and `resume` is false, or something else.
            MismatchError: it holds a run with other params or another start.
        """
        record = {
            # What only shows a run does not make it another one.
            "params": self.params.model_dump(exclude={"loop": True, "train": {"tensorboard", "wandb"}}),
            "checkpoint": digest_of(self.start) if read_checkpoint(self.start) else None,
            "reward": digest_of(self.reward) if self.reward else None,
        }
        path = self.folder / RECORD
        if path.exists():
            if not resume:
                raise ArtifactError(
                    f"{self.folder} holds a run already; go on with it by --resume, or choose another --out"
                )
            changed = sorted(_differences(_read(path), record))
            if changed:
                raise MismatchError(
                    f"{self.folder} is a run with another {', '.join(changed[:3])}; resume it with its own params, or "
                    "choose another --out"
                )
            return
        if self.folder.exists() and any(self.folder.iterdir()):
            raise ArtifactError(f"{self.folder} exists and is no run of `tgrpo train`; choose another --out")
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(path, record)

    def write_validation(self, k: int, summary: Mapping[str, Any]) -> None:
        """Keeps an `EvalSummary` on the validation states after iteration k."""
        path = self.validation(k)
        path.parent.mkdir(exist_ok=True)
        write_json(path, {"iteration": k, "checkpoint": digest_of(self.checkpoint(k)), **summary})

    def read_validation(self, k: int) -> dict[str, Any] | None:
        """The validation after iteration k, None when there is none.

        Raises:
            ArtifactError: it cannot be read, or is of another checkpoint.
        """
        path = self.validation(k)
        if not path.exists():
            return None
        found = _read(path)
        if found.get("checkpoint") != digest_of(self.checkpoint(k)):
            raise ArtifactError(f"{path} is not of {self.checkpoint(k)}; remove it and --resume to validate that again")
        return found

    def validations(self) -> list[Validation]:
        """All validations on disk, in the order of their iterations."""
        found = [self.read_validation(k) for k in range(self.done() + 1)]
        return [Validation(v["iteration"], v["successes"], v["episodes"]) for v in found if v]

    def end(self, ending: Ending) -> Ending:
        """Writes down how the run ended."""
        write_json(self.folder / ENDING, asdict(ending))
        return ending

    def ending(self) -> Ending | None:
        """How the run ended, None while it has not."""
        path = self.folder / ENDING
        return Ending(**_read(path)) if path.exists() else None


def _read(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return found
    except ValueError:
        remedy = "choose another --out" if path.name == RECORD else "remove it and --resume to make it again"
        raise ArtifactError(f"{path} cannot be read; {remedy}") from None


def _differences(a: dict[str, Any], b: dict[str, Any], prefix: str = "") -> list[str]:
    """The dotted keys at which two nested records differ."""
    keys: list[str] = []
    for key in a.keys() | b.keys():
        left, right = a.get(key), b.get(key)
        if isinstance(left, dict) and isinstance(right, dict):
            keys += _differences(left, right, f"{prefix}{key}.")
        elif left != right:
            keys.append(f"{prefix}{key}")
    return keys
