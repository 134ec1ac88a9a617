"""The published layout: a checkpoint made by OpenVLA's own code loads here and computes what that code computed."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors import safe_open

from stages.policy.parity.checks import Check, Fixture
from stages.policy.parity.compare import compare
from stages.policy.policy import VLAPolicy
from tests.policy.golden import FOLDERS, REDUCED, arrays

pytestmark = pytest.mark.parity

FILES = ("model_a", "images", "actions")
# What the model and the pipeline are given; the rest is what they make of it.
GIVEN = {
    *("raw", "rect200x256", "enc_in_f64", "enc_in_f32", "batch_in", "dec_ids", "gripper_in"),
    *("prompts", "cols", "grad_names", "b3_input_ids", "pad_input_ids", "pad_attention_mask"),
    *(f"s{i}_input_ids" for i in range(4)),
}
# Of a step that the policy has no use for, or said again by another array.
NOT_OURS = {
    *("gripper_normalized", "sampled", "b3_attention_mask"),
    *(f"s{i}_attention_mask" for i in range(4)),
    *(f"pa_attention_mask_{i}" for i in range(4)),
}
WITHOUT_THE_ORIGINAL = {
    "logits, batch = single",
    "logits, right-padded = unpadded",
    "act(), tokens, batch = single",
    "act(), log-probs, batch = single",
}


class Watched(dict[str, NDArray]):
    """Arrays, and which of them were looked at."""

    def __init__(self, arrays: Mapping[str, NDArray]) -> None:
        super().__init__(arrays)
        self.seen: set[str] = set()

    def __getitem__(self, name: str) -> NDArray:
        self.seen.add(name)
        return super().__getitem__(name)


def run(policy: VLAPolicy, files: list[Fixture]) -> list[Check]:
    among_actions = VLAPolicy(policy.model, policy.tokenizer, policy.device)
    return list(compare(policy, among_actions, *files))


def load(folder: Path) -> VLAPolicy:
    return VLAPolicy.load(folder / "model_a", device="cpu", sampling="full")


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_array_is_compared_and_none_differs(folder: Path) -> None:
    files = [Watched(arrays(folder, name)) for name in FILES]
    fixtures = [Fixture(file) for file in files]
    checks = run(load(folder), fixtures)
    assert [check.line() for check in checks if not check.ok] == []
    names = {name for file in files for name in file}
    assert names - {name for file in files for name in file.seen} == NOT_OURS
    left_out = {"crop_f32", "pixel_values_crop", "pixel_values_exact_imagenet", "s_logits_full8"}
    assert set.union(*(fixture.absent for fixture in fixtures)) == (left_out if folder == REDUCED else set())


def spoiled(name: str, array: NDArray) -> NDArray:
    if name in GIVEN:
        return array
    other = array.copy()
    if name == "jpeg_bytes":
        other[:, 14] += 1  # the density: still a JPEG
    elif array.dtype == bool:
        other = ~array
    elif array.dtype == np.uint8:
        other ^= 1
    else:
        other += 1
    return other


def test_every_check_can_fail() -> None:
    """Each array of the original moved by a little: every check that reads one says so."""
    files = [{name: spoiled(name, array) for name, array in arrays(REDUCED, file).items()} for file in FILES]
    checks = run(load(REDUCED), [Fixture(file) for file in files])
    assert {check.name for check in checks if check.ok} == WITHOUT_THE_ORIGINAL | {"prompt ids"}  # these are given


def test_a_batch_that_changes_its_members_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model whose rows depend on how many there are fails the four checks that need nothing of the original."""
    policy = load(REDUCED)
    embed = policy.model.embed

    def by_number(*args: object) -> object:
        embeds = embed(*args)
        return embeds * (1 + 0.5 * (len(embeds) - 1))

    monkeypatch.setattr(policy.model, "embed", by_number)
    checks = run(policy, [Fixture(arrays(REDUCED, name)) for name in FILES])
    assert {check.name for check in checks if not check.ok} >= WITHOUT_THE_ORIGINAL


def test_a_save_keeps_every_published_weight(tmp_path: Path) -> None:
    load(REDUCED).save_base(tmp_path)
    with (
        safe_open(REDUCED / "model_a" / "model.safetensors", "pt") as before,
        safe_open(tmp_path / "model.safetensors", "pt") as after,
    ):
        assert set(after.keys()) == set(before.keys())
