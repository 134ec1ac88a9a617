"""`tgrpo parity`, on a checkpoint that OpenVLA's own code made and on ones that are not quite it."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from stages.errors import ArtifactError, MismatchError, UsageError
from stages.params import Params
from stages.parity import parity
from stages.policy.parity.checks import Check
from tests.conftest import Run
from tests.policy.golden import REDUCED, arrays

pytestmark = pytest.mark.parity

CHECKPOINT = REDUCED / "model_a"
FILES = ("--fixture", REDUCED / "model_a.npz", "--images", REDUCED / "images.npz")
THREADS = {"OMP_NUM_THREADS": "1"}


def copy_with(folder: Path, name: str, change: Callable) -> Path:
    """The checkpoint with one tensor changed."""
    shutil.copytree(CHECKPOINT, folder, copy_function=os.link)
    weights = load_file(folder / "model.safetensors")
    change(weights[name])
    (folder / "model.safetensors").unlink()
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


def test_a_table_of_every_quantity_and_its_limit(tgrpo: Callable[..., Run]) -> None:
    run = tgrpo("parity", CHECKPOINT, *FILES, "--actions", REDUCED / "actions.npz", env=THREADS)
    assert run.code == 0, run.err
    *table, left_out, last = run.out.splitlines()
    assert all(line.endswith(" ok") and "largest difference" in line and "limit" in line for line in table)
    assert left_out.startswith("left out, not in the files: crop_f32,")
    assert last == f"{len(table)} quantities compared, all within their limits"


def test_one_register_token_moved_by_a_little_is_over(tmp_path: Path, tgrpo: Callable[..., Run]) -> None:
    other = copy_with(
        tmp_path / "other", "vision_backbone.featurizer.reg_token", lambda tokens: tokens[0, 0].add_(1e-2)
    )
    run = tgrpo("parity", other, *FILES, env=THREADS)
    assert run.code == 1
    over = {line.split()[0] for line in run.out.splitlines() if line.endswith("OVER")}
    assert {
        "tap0/dino_embed",
        "tap0/dino_block0",
        "vision_out",
        "projected",
        "s*_logits_cols_all",
        "s*_logprobs",
    } <= over
    assert not {"libero224", "tap0/dino_patch_embed", "tap0/siglip_block3"} & over
    assert "over the limit" in run.out.splitlines()[-1]


def compare(params: Params, fixture: Path, images: Path, checkpoint: Path = CHECKPOINT) -> list[Check]:
    checks: list[Check] = []
    parity(params, checkpoint, fixture, images, None, checks.append)
    return checks


def test_what_a_fixture_lacks_is_left_out(tmp_path: Path, params: Params) -> None:
    few = {name: array for name, array in arrays(REDUCED, "model_a").items() if name in ("vision_out", "projected")}
    np.savez(tmp_path / "few.npz", **few)
    np.savez(tmp_path / "images.npz", pixel_values=arrays(REDUCED, "images")["pixel_values"])
    with pytest.raises(MismatchError, match=r"\(1, 256, 136\), the fixture holds \(2, 256, 136\)"):
        compare(params, tmp_path / "few.npz", tmp_path / "images.npz")
    few = {name: array[:1] for name, array in few.items()}
    np.savez(tmp_path / "few.npz", **few)
    checks = compare(params, tmp_path / "few.npz", tmp_path / "images.npz")
    assert [check.name for check in checks] == ["vision_out", "projected"]
    assert all(check.ok for check in checks)


def test_files_that_are_no_fixtures(tmp_path: Path, params: Params) -> None:
    model, images = REDUCED / "model_a.npz", REDUCED / "images.npz"
    np.savez(tmp_path / "other.npz", weights=np.zeros(3))
    np.save(tmp_path / "one.npy", np.zeros(3))
    for fixture, kind, message in (
        (tmp_path / "other.npz", UsageError, "other.npz holds weights, none of which parity knows"),
        (tmp_path / "none.npz", ArtifactError, "none.npz does not exist"),
        (tmp_path / "one.npy", ArtifactError, "is no .npz file"),
        (CHECKPOINT / "config.json", ArtifactError, "is no .npz file"),
    ):
        with pytest.raises(kind, match=message):
            compare(params, fixture, images)
        with pytest.raises(kind, match=message):
            compare(params, model, fixture)


def test_checkpoints_that_cannot_be_compared(tmp_path: Path, params: Params, embedded: Path) -> None:
    files = REDUCED / "model_a.npz", REDUCED / "images.npz"
    with pytest.raises(MismatchError, match="no published code to compare with"):
        compare(params, *files, checkpoint=embedded)
    with pytest.raises(ArtifactError, match="is no checkpoint: it has neither"):
        compare(params, *files, checkpoint=tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(UsageError, match="tgrpo export"):
        compare(params, *files, checkpoint=tmp_path)
