"""Scenes from the cache against scenes built anew, and what becomes of entries that are damaged, old or not ours."""

import json
import os
import pickle
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mujoco
import numpy as np
import pytest

from stages.sim import domain, model_cache, primitives
from stages.sim.assets import Assets, resolve_assets
from stages.sim.domain import make_domain, reading_scene
from stages.sim.env import LiberoEnv
from stages.sim.model_cache import read_entry, write_entry
from stages.sim.runtime import prepare, quiet
from stages.sim.tasks import load_task
from stages.types import InitialState
from tests.sim.sample import LIBERO_ASSETS, SIM, TASK

ROOT = Path(__file__).parents[2]
KEY = {"task": "test/0", "mujoco": "3.3.2"}
PICKLED = pickle.dumps("the Python side")
STARTS = [
    InitialState("official", 7),
    InitialState("sampled", 0),
    InitialState("official", 0),
    InitialState("sampled", 5),
]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of models; that of numba, which takes long to fill, stays."""
    monkeypatch.setattr(model_cache, "cache_dir", lambda: tmp_path / "cache")
    return tmp_path / "cache" / "models"


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The BDDL files of the scenes that were built, in order."""
    seen: list[Path] = []
    build = domain.build_domain

    def counting(bddl_file: Path, *, cheap_robot: bool) -> Any:
        seen.append(bddl_file)
        return build(bddl_file, cheap_robot=cheap_robot)

    monkeypatch.setattr(domain, "build_domain", counting)
    return seen


def _model(size: float = 1.0) -> mujoco.MjModel:
    return mujoco.MjModel.from_xml_string(f'<mujoco><worldbody><geom size="{size}"/></worldbody></mujoco>')


def _bytes(model: mujoco.MjModel) -> bytes:
    buffer = np.empty(mujoco.mj_sizeModel(model), np.uint8)
    mujoco.mj_saveModel(model, None, buffer)
    return buffer.tobytes()


def _scene(assets: Assets, *, cheap_robot: bool = True) -> bytes:
    prepare(SIM, assets.path)
    np.random.seed(0)
    with quiet(), reading_scene(TASK, assets, cheap_robot=cheap_robot) as scene:
        return _bytes(make_domain(scene).sim.model._model)


def _assert_alike(built: LiberoEnv, cached: LiberoEnv) -> None:
    assert _bytes(cached.model) == _bytes(built.model)
    for start in STARTS:
        actions = np.random.default_rng(start.index).uniform(-1.2, 1.2, (20, 7))
        for env in (built, cached):
            env.reset(start)
        np.testing.assert_array_equal(cached.render(), built.render())
        for action in actions:
            assert cached.step(action) == built.step(action)
            np.testing.assert_array_equal(cached.state(), built.state())
        np.testing.assert_array_equal(cached.proprio(), built.proprio())
        np.testing.assert_array_equal(cached.snapshot(), built.snapshot())
        np.testing.assert_array_equal(cached.render(), built.render())
        for name, values in vars(built.scene()).items():
            np.testing.assert_array_equal(getattr(cached.scene(), name), values)
    assert cached.object_names == built.object_names


def test_a_cached_scene_equals_a_built_one_bit_by_bit(builds: list[Path], capfd: pytest.CaptureFixture[str]) -> None:
    built = LiberoEnv(TASK, SIM, resolve_assets(SIM))
    np.random.seed(77)  # building draws from this stream; nothing later may depend on where it stands
    cached = LiberoEnv(TASK, SIM, resolve_assets(SIM))
    assert builds == [TASK.bddl_file]
    _assert_alike(built, cached)
    assert capfd.readouterr() == ("", "")
    built.close()
    cached.close()


@pytest.mark.slow
@pytest.mark.skipif(not LIBERO_ASSETS.is_dir(), reason="LIBERO's meshes are not here")
@pytest.mark.parametrize(
    "task_id", ["libero_spatial/4", "libero_object/0", "libero_goal/7", "libero_10/2", "libero_90/3"]
)
def test_a_cached_scene_of_liberos_meshes_equals_a_built_one(task_id: str, builds: list[Path]) -> None:
    task = load_task(task_id)
    sim = SIM.model_copy(update={"assets": "libero", "assets_dir": str(LIBERO_ASSETS), "shadows": True})
    built, cached = (LiberoEnv(task, sim, resolve_assets(sim)) for _ in range(2))
    assert builds == [task.bddl_file]
    _assert_alike(built, cached)
    built.close()
    cached.close()


def test_an_entry_comes_back_as_it_was() -> None:
    assert read_entry(KEY) is None
    write_entry(KEY, _model(2.0), PICKLED)
    model, pickled = read_entry(KEY) or pytest.fail("there is no entry")
    assert (_bytes(model), pickled) == (_bytes(_model(2.0)), PICKLED)
    assert read_entry({**KEY, "mujoco": "3.3.1"}) is None
    write_entry(KEY, _model(3.0), PICKLED)
    model, _ = read_entry(KEY) or pytest.fail("there is no entry")
    assert _bytes(model) == _bytes(_model(3.0))


def _cut(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def _flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def _garble(file: Path) -> None:
    file.write_bytes(os.urandom(file.stat().st_size))


def _link(file: Path) -> None:
    shutil.move(file, file.parents[3] / "elsewhere")
    file.symlink_to(file.parents[3] / "elsewhere")


@pytest.mark.parametrize("name", ["header.json", "model.mjb", "domain.pickle"])
@pytest.mark.parametrize("damage", [_cut, _flip, _garble, _link, Path.unlink])
def test_a_damaged_entry_is_none_and_is_replaced(
    name: str, damage: Callable[[Path], None], cache: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    write_entry(KEY, _model(), PICKLED)
    (entry,) = cache.iterdir()
    damage(entry / name)
    assert read_entry(KEY) is None
    write_entry(KEY, _model(), PICKLED)
    assert read_entry(KEY) is not None
    assert list(cache.iterdir()) == [entry]
    assert capfd.readouterr() == ("", "")


def test_an_entry_of_another_scene_is_none(cache: Path) -> None:
    write_entry(KEY, _model(), PICKLED)
    (entry,) = cache.iterdir()
    other = {**KEY, "mujoco": "3.3.1"}
    write_entry(other, _model(), PICKLED)
    (theirs,) = set(cache.iterdir()) - {entry}
    shutil.rmtree(theirs)
    entry.rename(theirs)
    assert read_entry(other) is None


def test_a_folder_that_others_may_write_to_is_none(cache: Path) -> None:
    write_entry(KEY, _model(), PICKLED)
    (entry,) = cache.iterdir()
    assert entry.stat().st_mode & 0o077 == 0
    entry.chmod(0o777)
    assert read_entry(KEY) is None


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
@pytest.mark.parametrize("name", [".", "header.json", "model.mjb", "domain.pickle"])
def test_another_users_entry_is_none(name: str, cache: Path) -> None:
    write_entry(KEY, _model(), PICKLED)
    (entry,) = cache.iterdir()
    os.chown(entry / name, 12345, -1)
    assert read_entry(KEY) is None


@pytest.mark.parametrize("in_the_way", ["cache", "cache/models"])
def test_without_a_writable_folder_scenes_are_built(in_the_way: str, tmp_path: Path, builds: list[Path]) -> None:
    (tmp_path / in_the_way).parent.mkdir(exist_ok=True)
    (tmp_path / in_the_way).write_text("a file where a folder should be")
    assert _scene(resolve_assets(SIM)) == _scene(resolve_assets(SIM))
    assert len(builds) == 2


@pytest.mark.parametrize("pickled", [b"no pickle", pickle.dumps({})[:-1], b"cno.such.module\nThing\n."])
def test_what_cannot_be_unpickled_is_built_and_replaced(pickled: bytes, cache: Path, builds: list[Path]) -> None:
    """Whole files with the right digests, as a package of another version under the same number would leave."""
    scene = _scene(resolve_assets(SIM))
    (entry,) = cache.iterdir()
    key = json.loads((entry / "header.json").read_text())["scene"]
    model, _ = read_entry(key) or pytest.fail("there is no entry")
    write_entry(key, model, pickled)
    assert _scene(resolve_assets(SIM)) == scene
    assert len(builds) == 2
    assert _scene(resolve_assets(SIM)) == scene
    assert len(builds) == 2


def test_an_edited_asset_another_robot_or_version_is_another_scene(
    tmp_path: Path, builds: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The edit keeps the file's size, so the digest of the set, which is the same on all machines, does not see it."""
    primitives.write_primitives(tmp_path / "set")
    assets = Assets("libero", tmp_path / "set", "the same digest")
    before = _scene(assets)
    butter = assets.path / primitives.object_path("butter")
    text = butter.read_text()
    edited = text.replace('rgba="0', 'rgba="1', 1)
    assert edited != text
    butter.write_text(edited)
    assert _scene(assets) != before
    assert len(builds) == 2
    assert _scene(assets, cheap_robot=False) != _scene(assets)
    assert len(builds) == 3
    monkeypatch.setattr(domain, "_version", lambda package: "99")
    _scene(assets)
    assert len(builds) == 4


WRITER = """
import sys
from pathlib import Path
from stages.sim import model_cache
from tests.sim.test_model_cache import KEY, _bytes, _model
model_cache.cache_dir = lambda: Path(sys.argv[1])
known = {_bytes(_model(size)): str(size).encode() for size in (1.0, 2.0)}
found = 0
for turn in range(60):
    size = 1.0 + turn % 2
    model_cache.write_entry(KEY, _model(size), str(size).encode())
    entry = model_cache.read_entry(KEY)
    found += entry is not None
    assert entry is None or known[_bytes(entry[0])] == entry[1]
print(found)
"""


def test_processes_may_write_the_same_entry_at_once(cache: Path) -> None:
    command = [sys.executable, "-c", WRITER, str(cache.parent)]
    writers = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    answers = [writer.communicate(timeout=100)[0] for writer in writers]
    assert [writer.returncode for writer in writers] == [0, 0, 0]
    assert sum(map(int, answers)) > 60  # a reader may fall between two writers, but seldom
    assert read_entry(KEY) is not None
    assert len(list(cache.iterdir())) == 1


def test_a_cache_that_can_only_be_read_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    write_entry(KEY, _model(), PICKLED)

    def refuse(*arguments: object) -> None:
        raise OSError("Read-only file system")  # root, as which tests run in containers, is never refused

    monkeypatch.setattr(os, "utime", refuse)
    assert read_entry(KEY) is not None


def test_the_scenes_unused_for_longest_leave(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = [{"task": f"test/{index}"} for index in range(4)]
    for index, key in enumerate(keys[:3]):
        write_entry(key, _model(), PICKLED)
        newest = max(cache.iterdir(), key=lambda entry: (entry / "header.json").stat().st_mtime)
        os.utime(newest / "header.json", (index + 1, index + 1))
    assert read_entry(keys[0]) is not None  # and so it was used last
    size = sum(file.stat().st_size for file in newest.iterdir())
    (cache / "not an entry").mkdir()
    (cache / ".new-abandoned").mkdir()
    os.utime(cache / ".new-abandoned", (1, 1))
    (cache / ".new-at-work").mkdir()
    monkeypatch.setattr(model_cache, "MAX_BYTES", int(3.5 * size))
    write_entry(keys[3], _model(), PICKLED)
    assert [read_entry(key) is not None for key in keys] == [True, False, True, True]
    monkeypatch.setattr(model_cache, "MAX_BYTES", 1)
    time.sleep(0.01)
    write_entry(keys[1], _model(), PICKLED)
    assert [read_entry(key) is not None for key in keys] == [False, True, False, False]
    assert sorted(path.name for path in cache.iterdir() if path.name.startswith((".", "n"))) == [".new-at-work"]


LAZY = """
import sys
from stages.sim.assets import resolve_assets
from stages.sim.env import LiberoEnv
from tests.sim.sample import SIM, TASK
LiberoEnv(TASK, SIM, resolve_assets(SIM))
assert not any(name.startswith("matplotlib") for name in sys.modules)
from libero.libero.envs.env_wrapper import cm
assert cm.viridis(0.0)[3] == 1.0
import matplotlib.pyplot
"""


def test_matplotlib_waits_until_libero_needs_it() -> None:
    done = subprocess.run([sys.executable, "-c", LAZY], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
