"""Where assets are looked for, and what is said when they are not there."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from stages.errors import SimulatorError
from stages.params import SimParams
from stages.sim import assets, primitives
from stages.sim.assets import resolve_assets
from tests.sim.sample import SIM


def _params(**changes: object) -> SimParams:
    return SimParams(**{**SIM.model_dump(), **changes})


@pytest.fixture
def complete(tmp_path: Path) -> Path:
    """A folder with every file that LIBERO would read."""
    folder = tmp_path / "complete"
    primitives.write_primitives(folder)
    return folder


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TGRPO_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_primitives_are_generated_once_under_their_digest(cache: Path) -> None:
    first = resolve_assets(SIM)
    scene = first.path / primitives.SCENE
    written = scene.stat().st_mtime_ns
    assert first.kind == "primitive"
    assert first.path == cache / "assets" / f"primitive-{first.digest}"
    assert resolve_assets(SIM) == first
    assert scene.stat().st_mtime_ns == written


def test_a_damaged_generated_set_is_refused() -> None:
    missing = resolve_assets(SIM).path / primitives.object_path("milk")
    missing.unlink()
    with pytest.raises(SimulatorError, match=r"lack stable_hope_objects/milk/milk\.xml; delete"):
        resolve_assets(SIM)


def test_an_unwritable_cache_is_a_clear_error(cache: Path) -> None:
    cache.write_text("a file where a folder should be")
    with pytest.raises(SimulatorError, match="TGRPO_CACHE"):
        resolve_assets(SIM)


def test_named_folder_is_taken(complete: Path) -> None:
    found = resolve_assets(_params(assets="auto", assets_dir=str(complete)))
    assert (found.kind, found.path) == ("libero", complete.resolve())


def test_first_missing_file_is_named(complete: Path) -> None:
    (complete / primitives.WALL_TEXTURE).unlink()
    (complete / primitives.object_path("milk")).unlink()
    with pytest.raises(SimulatorError, match=r"lack textures/light-gray-plaster\.png"):
        resolve_assets(_params(assets="libero", assets_dir=str(complete)))


def test_file_that_a_model_names_is_needed(complete: Path) -> None:
    model = complete / primitives.object_path("basket")
    model.write_text('<mujoco><asset><mesh file="visual/basket.msh"/></asset></mujoco>')
    with pytest.raises(SimulatorError, match=r"lack stable_scanned_objects/basket/visual/basket\.msh"):
        resolve_assets(_params(assets="libero", assets_dir=str(complete)))


def test_digest_of_a_folder_sees_sizes_and_skips_hidden_files(complete: Path) -> None:
    params = _params(assets="libero", assets_dir=str(complete))
    before = resolve_assets(params).digest
    (complete / ".cache").mkdir()
    (complete / ".cache" / "note").write_text("x")
    assert resolve_assets(params).digest == before
    with (complete / primitives.SCENE).open("a") as scene:
        scene.write("\n")
    assert resolve_assets(params).digest != before


def test_auto_takes_what_is_here(complete: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assets, "_local_folders", lambda: [tmp_path / "nowhere", complete])
    assert resolve_assets(_params(assets="auto")).kind == "libero"
    monkeypatch.setattr(assets, "_local_folders", lambda: [tmp_path / "nowhere"])
    assert resolve_assets(_params(assets="auto")).kind == "primitive"


def test_libero_that_cannot_be_downloaded_names_the_remedy(tmp_path: Path) -> None:
    code = (
        "from pathlib import Path; from stages.errors import SimulatorError; from stages.sim import assets\n"
        "try: assets._download()\n"
        "except SimulatorError as error: print(error)"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HOME": str(tmp_path)}
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], env=environment, cwd=root, capture_output=True, text=True)
    assert "sim.assets_dir" in done.stdout
    assert done.stdout.count("\n") == 1
