"""A cheaper look for the robot: the same arm in a tenth of the triangles.

A software renderer pays for every triangle, and robosuite's Panda has far more of them than an image of 96 pixels can
show. `cheapen_robot` points the scene's visual meshes to decimated copies, made once and kept in the cache. What
collides is left alone.
"""

import hashlib
import os
import struct
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stages.sim.cache import cache_dir
from stages.sim.primitive_shapes import ROBOT_CELL_M

ROBOT_PREFIXES = ("robot", "gripper", "mount")  # with which robosuite begins the names of the robot's parts


def cheapen_robot(xml: str) -> str:
    """Returns the scene's MJCF with the robot's purely visual meshes decimated.

    A mesh is purely visual when no geom that shows it collides or carries mass (robosuite keeps group 1 out of the
    model's `inertiagrouprange`), so masses, inertias, contacts and trajectories stay as they are, bit for bit.

    Args:
        xml: a whole MuJoCo model, file names absolute, as robosuite hands it to MuJoCo.
    """
    root = ET.fromstring(xml)
    physical = {geom.get("mesh") for geom in root.iter("geom") if not _only_visual(geom)}
    for mesh in root.iter("mesh"):
        name, file = mesh.get("name", ""), mesh.get("file")
        if file and name.startswith(ROBOT_PREFIXES) and name not in physical:
            mesh.set("file", str(_decimated(Path(file))))
    return ET.tostring(root, encoding="unicode")


def _only_visual(geom: ET.Element) -> bool:
    return geom.get("group") == "1" and geom.get("contype") == "0" and geom.get("conaffinity") == "0"


def _decimated(source: Path) -> Path:
    content = source.read_bytes()
    digest = hashlib.sha256(content + f"{source.suffix} {ROBOT_CELL_M}".encode()).hexdigest()[:16]
    target = cache_dir() / "robot" / f"{source.stem}-{digest}.stl"
    if not target.is_file():
        vertices, faces = _load_mesh(source)
        vertices, faces = cluster_vertices(vertices, faces, ROBOT_CELL_M)
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.stem}-{os.getpid()}.stl")  # workers may make the same mesh at once
        temporary.write_bytes(_binary_stl(vertices[faces]))
        os.replace(temporary, target)
    return target


def _load_mesh(path: Path) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Reads whatever mesh format MuJoCo reads: vertices (V, 3) in the file's own frame and faces (F, 3)."""
    from stages.sim.glfree import mujoco  # only when a mesh is decimated for the first time

    root = ET.Element("mujoco")
    ET.SubElement(ET.SubElement(root, "asset"), "mesh", name="mesh", file=str(path))
    model = mujoco.MjModel.from_xml_string(ET.tostring(root, encoding="unicode"))
    rotation = np.zeros(9)
    mujoco.mju_quat2Mat(rotation, model.mesh_quat[0])  # MuJoCo moved the mesh to its inertial frame; this moves it back
    return model.mesh_vert @ rotation.reshape(3, 3).T + model.mesh_pos[0], model.mesh_face.astype(np.int64)


def cluster_vertices(
    vertices: NDArray[np.float64], faces: NDArray[np.int64], cell: float
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Decimates a mesh by vertex clustering (Rossignac and Borrel, 1993).

    All vertices in one cell of a grid become their mean; faces that lose a corner by it vanish, and so do doubles. A
    mesh too small for the cell is returned as it is.
    """
    cells = np.floor((vertices - vertices.min(0)) / cell).astype(np.int64)
    _, cluster = np.unique(cells, axis=0, return_inverse=True)
    cluster = cluster.reshape(-1)
    counts = np.bincount(cluster)
    means = np.stack([np.bincount(cluster, vertices[:, axis]) / counts for axis in range(3)], axis=1)
    merged = cluster[faces]
    distinct = (merged[:, 0] != merged[:, 1]) & (merged[:, 1] != merged[:, 2]) & (merged[:, 2] != merged[:, 0])
    merged = merged[distinct]
    smallest_first = (merged.argmin(1)[:, None] + np.arange(3)) % 3  # keeps the winding: a thin sheet has two sides
    merged = np.unique(np.take_along_axis(merged, smallest_first, axis=1), axis=0)
    if len(merged) < 4 or np.linalg.matrix_rank(means[np.unique(merged)] - means[merged[0, 0]], tol=1e-4) < 3:
        return vertices, faces  # MuJoCo refuses a flat mesh
    return means, merged


def _binary_stl(triangles: NDArray[np.float64]) -> bytes:
    """A binary STL of triangles (F, 3, 3); the normals stay zero, as MuJoCo computes its own."""
    record = np.dtype([("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("attribute", "<u2")])
    rows = np.zeros(len(triangles), record)
    rows["corners"] = triangles
    return b"\0" * 80 + struct.pack("<I", len(rows)) + rows.tobytes()
