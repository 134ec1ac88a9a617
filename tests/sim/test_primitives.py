"""The primitive asset set against numbers derived by hand and, where LIBERO's own assets lie beside, against those."""

import xml.etree.ElementTree as ET
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import imageio.v3 as imageio
import mujoco
import numpy as np
import pytest
from numpy.typing import NDArray

from stages.sim import primitive_shapes as shapes
from stages.sim import primitives
from stages.sim.assets import resolve_assets
from stages.sim.env import LiberoEnv
from stages.sim.expert import PickPlaceExpert
from stages.sim.tasks import load_task
from stages.types import InitialState
from tests.sim.sample import LIBERO_ASSETS, SIM

OBJECTS = sorted(shapes.BOXES)

needs_libero_assets = pytest.mark.skipif(not LIBERO_ASSETS.is_dir(), reason="LIBERO's own assets are not here")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("assets") / "set"
    primitives.write_primitives(folder)
    return folder


def _compile(path: Path) -> mujoco.MjModel:
    """Compiles one object as robosuite does: visible geoms (group 1) carry no mass."""
    root = ET.parse(path).getroot()
    for element in root.iter():
        if file := element.get("file"):
            element.set("file", str(path.parent / file))
    ET.SubElement(root, "compiler", angle="radian", inertiagrouprange="0 0")
    return mujoco.MjModel.from_xml_string(ET.tostring(root, encoding="unicode"))


def test_set_has_the_objects_scene_and_textures_and_no_mesh(folder: Path) -> None:
    files = primitives.primitive_files()
    assert len(files) == 11 + 1 + 2
    assert all((folder / path).read_bytes() == content for path, content in files.items())
    assert not any(b"<mesh" in content for path, content in files.items() if path.endswith(".xml"))


def test_butter_weighs_what_its_box_does(folder: Path) -> None:
    model = _compile(folder / primitives.object_path("butter"))
    # One box of half extents 8.71, 19.77 and 38.09 mm: 8 * 8.71e-3 * 19.77e-3 * 38.09e-3 = 5.24718e-5 m3, times
    # 100 kg/m3; the visible packet of about the same size must add nothing.
    np.testing.assert_allclose(model.body_mass.sum(), 5.24718e-3, rtol=1e-5)


def test_textures_are_of_one_colour(folder: Path) -> None:
    image = imageio.imread(folder / primitives.FLOOR_TEXTURE)
    assert image.shape[2] == 3
    assert (image == primitives.FLOOR_RGB).all()


def test_many_writers_leave_one_whole_set(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(primitives.write_primitives, [folder] * 8))
    assert [path.name for path in tmp_path.iterdir()] == ["set"]
    assert sum(path.is_file() for path in folder.rglob("*")) == len(primitives.primitive_files())


def test_digest_follows_the_content(monkeypatch: pytest.MonkeyPatch) -> None:
    before = primitives.primitive_digest()
    assert primitives.primitive_digest() == before
    monkeypatch.setattr(primitives, "FLOOR_RGB", (0, 0, 0))
    assert primitives.primitive_digest() != before


@needs_libero_assets
@pytest.mark.parametrize("name", OBJECTS)
def test_object_has_the_physics_of_liberos(folder: Path, name: str) -> None:
    ours = _compile(folder / primitives.object_path(name))
    theirs = _compile(LIBERO_ASSETS / primitives.object_path(name))
    for field in ("body_mass", "body_inertia", "body_ipos", "body_iquat"):
        np.testing.assert_array_equal(getattr(ours, field), getattr(theirs, field), err_msg=field)
    for field in ("type", "pos", "quat", "size", "friction", "solref", "solimp", "condim", "contype", "conaffinity"):
        mine, reference = (getattr(model, f"geom_{field}")[model.geom_group == 0] for model in (ours, theirs))
        np.testing.assert_array_equal(mine, reference, err_msg=field)
    for site in range(theirs.nsite):
        reference = theirs.site(site)
        mine = ours.site(reference.name)
        assert mine.bodyid == reference.bodyid
        for field in ("pos", "quat", "size", "type"):
            np.testing.assert_array_equal(getattr(mine, field), getattr(reference, field), err_msg=reference.name)


@needs_libero_assets
@pytest.mark.parametrize("name", [name for name in OBJECTS if name != "basket"])
def test_object_is_seen_as_large_as_liberos(folder: Path, name: str) -> None:
    spans = [
        np.ptp(_visible_points(_compile(root / primitives.object_path(name))), axis=0)
        for root in (folder, LIBERO_ASSETS)
    ]
    np.testing.assert_allclose(spans[0], spans[1], atol=0.005)


def _visible_points(model: mujoco.MjModel) -> NDArray[np.float64]:
    """Vertices of the visible meshes and corners of the visible shapes' bounding boxes (P, 3)."""
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    signs = np.stack(np.meshgrid(*[[-1, 1]] * 3), -1).reshape(-1, 3)
    points = []
    for geom in np.flatnonzero(model.geom_group == 1):
        local = model.geom_aabb[geom, :3] + signs * model.geom_aabb[geom, 3:]
        if (mesh := model.geom_dataid[geom]) >= 0:
            first = model.mesh_vertadr[mesh]
            local = model.mesh_vert[first : first + model.mesh_vertnum[mesh]]
        points.append(data.geom_xpos[geom] + local @ data.geom_xmat[geom].reshape(3, 3).T)
    return np.concatenate(points)


@needs_libero_assets
@pytest.mark.slow
@pytest.mark.parametrize("index", range(10))
def test_episode_is_that_of_liberos_meshes(index: int) -> None:
    task = load_task(f"libero_object/{index}")
    episodes = []
    for kind, folder in (("primitive", None), ("libero", str(LIBERO_ASSETS))):
        sim = SIM.model_copy(update={"assets": kind, "assets_dir": folder})
        env = LiberoEnv(task, sim, resolve_assets(sim))
        expert = PickPlaceExpert(env.object_names, env.object_names[0])
        states = []
        for start in (InitialState("official", 0), InitialState("official", 49), InitialState("sampled", 0)):
            env.reset(start)
            for _ in range(25):
                action = expert.act(env.scene())
                for _ in range(4):
                    env.step(action)
                    states.append(env.state())
        env.close()
        episodes.append(states)
    np.testing.assert_array_equal(episodes[0], episodes[1])
