"""Compares a checkpoint with what the original code computed from it. Fixtures: docs/parity.md."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from zipfile import BadZipFile

import numpy as np

from stages.errors import ArtifactError, UsageError
from stages.params import Params
from stages.workspace import locate, read_checkpoint, refuse_small_memory

if TYPE_CHECKING:
    from stages.policy.parity.checks import Check, Fixture

# How the arrays of each file are called. A file without any is another file, which is said before a model is loaded.
MODEL = re.compile(r"s\d+_.+|b3_.+|pad_.+|pa_.+|tap0/.+|grad/.+|prompts|vision_out|projected|loss")
IMAGES = re.compile(r"raw|rot180|jpeg_.+|lanczos_f32|libero224.*|crop_f32|pixel_values.*|raw_bicubic224")
ACTIONS = re.compile(r"bins|bin_centers|enc_.+|dec_.+|batch_.+|gripper_.+|roundtrip")


@dataclass(frozen=True)
class Outcome:
    """What came of a comparison."""

    compared: int
    over: int  # quantities above their limits
    absent: list[str]  # arrays that no fixture holds

    def line(self) -> str:
        verdict = f"{self.over} over the limit" if self.over else "all within their limits"
        return f"{self.compared} quantities compared, {verdict}"


def parity(
    params: Params,
    checkpoint: Path,
    fixture: Path,
    images: Path,
    actions: Path | None,
    show: Callable[["Check"], None],
) -> Outcome:
    """Compares everything that the fixtures hold, in float32; `show` gets each check as soon as it is made.

    Args:
        checkpoint: a folder in OpenVLA's published layout, or a model of the hub.
        fixture, images, actions: .npz files of the model's, the image pipeline's and the action tokenizer's arrays.

    Raises:
        ArtifactError: a file or checkpoint that is missing or broken.
        MismatchError: a fixture of another checkpoint, or a checkpoint without the published image pipeline.
        UsageError: a file without a single array that this comparison knows; an adapter.
    """
    files = _open(fixture, MODEL), _open(images, IMAGES), _open(actions, ACTIONS)
    suite = str(files[0].arrays["unnorm_key"]) if "unnorm_key" in files[0].arrays else None

    folder = locate(checkpoint)

    from stages.policy.checkpoint import is_adapter
    from stages.policy.parity.compare import compare
    from stages.policy.policy import VLAPolicy

    if is_adapter(folder):
        raise UsageError(
            f"{checkpoint} is an adapter; make a whole checkpoint of it with `tgrpo export`, and compare that"
        )
    read_checkpoint(folder)
    refuse_small_memory(folder, params.policy.device, "float32")
    policy = VLAPolicy.load(folder, params.policy.device, suite=suite, dtype="float32", sampling="full")
    among_actions = VLAPolicy(policy.model, policy.tokenizer, policy.device, suite)
    compared = over = 0
    for check in compare(policy, among_actions, *files):
        show(check)
        compared += 1
        over += not check.ok
    absent = sorted({name for file in files for name in file.absent})
    return Outcome(compared, over, absent)


def _open(path: Path | None, known: re.Pattern[str]) -> "Fixture":
    from stages.policy.parity.checks import Fixture

    if path is None:
        return Fixture({})
    if not path.is_file():
        raise ArtifactError(f"{path} does not exist; make it as docs/parity.md says")
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
    except (OSError, ValueError, TypeError, EOFError, BadZipFile):
        raise ArtifactError(f"{path} is no .npz file of plain arrays; make it as docs/parity.md says") from None
    if not any(known.fullmatch(name) for name in arrays):
        held = ", ".join(sorted(arrays)[:3]) or "nothing"
        raise UsageError(f"{path} holds {held}, none of which parity knows; docs/parity.md lists those it does")
    return Fixture(arrays)
