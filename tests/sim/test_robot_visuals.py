"""The decimated robot: the mesh arithmetic by hand, and the physics of a whole scene with and without."""

import mujoco
import numpy as np
import pytest

from stages.sim.assets import resolve_assets
from stages.sim.env import LiberoEnv
from stages.sim.robot_visuals import cheapen_robot, cluster_vertices
from stages.sim.tasks import load_task
from tests.sim.sample import SIM


@pytest.fixture(scope="module")
def scene() -> str:
    """The scene's MJCF before the robot is cheapened."""
    env = LiberoEnv(load_task("libero_object/6"), SIM, resolve_assets(SIM))
    xml: str = env._env.model.get_xml()
    env.close()
    return xml


def test_vertices_of_a_cell_become_their_mean() -> None:
    # A tetrahedron whose first corner is split in two, 0.1 apart. In cells of 0.5 only those two share one, at mean
    # (0.05, 0, 0); of the six faces the two that use both halves of the corner collapse.
    vertices = np.array([[0, 0, 0], [0.1, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]], float)
    faces = np.array([[0, 3, 1], [1, 3, 2], [0, 1, 4], [1, 2, 4], [2, 3, 4], [0, 4, 3]])
    merged_vertices, merged_faces = cluster_vertices(vertices, faces, 0.5)
    assert len(merged_vertices) == 4
    assert len(merged_faces) == 4
    assert [0.05, 0, 0] in merged_vertices.tolist()


def test_thin_sheet_keeps_both_sides() -> None:
    # Two tetrahedra back to back on one triangle: the shared triangle is there in both windings and stays so.
    vertices = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, -1]], float)
    faces = np.array([[0, 1, 2], [0, 2, 1], [0, 1, 3], [1, 2, 3], [0, 2, 4], [2, 1, 4]])
    assert len(cluster_vertices(vertices, faces, 0.5)[1]) == 6


def test_mesh_too_small_for_the_cell_stays_as_it_is() -> None:
    vertices = np.array([[0, 0, 0], [0.1, 0, 0], [0, 0.1, 0], [0, 0, 0.1]], float)
    faces = np.array([[0, 2, 1], [0, 1, 3], [1, 2, 3], [0, 3, 2]])
    merged_vertices, merged_faces = cluster_vertices(vertices, faces, 1.0)
    np.testing.assert_array_equal(merged_vertices, vertices)
    np.testing.assert_array_equal(merged_faces, faces)


def _visible_faces(model: mujoco.MjModel) -> int:
    visible = (model.geom_type == mujoco.mjtGeom.mjGEOM_MESH) & (model.geom_group == 1)
    return int(model.mesh_facenum[model.geom_dataid[visible]].sum())


def test_robot_is_cheaper_to_draw_and_moves_the_same(scene: str) -> None:
    plain = mujoco.MjModel.from_xml_string(scene)
    cheap = mujoco.MjModel.from_xml_string(cheapen_robot(scene))
    assert _visible_faces(cheap) < _visible_faces(plain) / 5
    for field in ("body_mass", "body_inertia", "body_ipos", "body_iquat", "body_invweight0", "dof_invweight0"):
        np.testing.assert_array_equal(getattr(cheap, field), getattr(plain, field), err_msg=field)
    states = []
    for model in (plain, cheap):
        data = mujoco.MjData(model)
        rng = np.random.default_rng(0)
        trajectory = []
        for _ in range(50):
            data.ctrl[:] = rng.uniform(*model.actuator_ctrlrange.T)
            mujoco.mj_step(model, data, nstep=5)
            trajectory.append(np.concatenate([data.qpos, data.qvel]))
        assert data.ncon > 0
        states.append(trajectory)
    np.testing.assert_array_equal(states[0], states[1])
