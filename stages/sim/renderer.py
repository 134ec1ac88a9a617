"""One camera of a MuJoCo model, rendered off screen at any size."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.errors import SimulatorError
from stages.sim.backends import Backend, make_context
from stages.sim.glfree import mujoco

_MAX_GEOMS = 1000  # as robosuite allocates
_COLLISION_GROUP, _VISUAL_GROUP = 0, 1  # robosuite's geom groups


class Renderer:
    """Renders what robosuite shows: visual geoms, no collision geoms. Belongs to the process and thread that made it.

    mujoco.Renderer would do the same, but takes its OpenGL from what MUJOCO_GL was when mujoco was first imported.

    Args:
        model: its `vis` settings and light shadows are set here.
        backend: the OpenGL backend.
        size: pixels of the square image; larger ones can be rendered later at the cost of a new context.
        shadows: lights cast shadows and surfaces reflect, as in LIBERO; in software this doubles the cost of an image.
        multisampling: samples per pixel; LIBERO has 4, 0 turns it off.

    Raises:
        SimulatorError: the backend does not start.
    """

    def __init__(
        self, model: mujoco.MjModel, backend: Backend, *, size: int, shadows: bool, multisampling: int
    ) -> None:
        self._model = model
        model.vis.quality.offsamples = multisampling
        if not shadows:
            model.light_castshadow[:] = 0
        if not model.light_castshadow.any():
            model.vis.quality.shadowsize = 0  # else every context holds a map of 64 MiB, drawn or not
        self._camera = mujoco.MjvCamera()
        self._camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
        self._option = mujoco.MjvOption()
        self._option.geomgroup[_COLLISION_GROUP] = 0
        self._option.geomgroup[_VISUAL_GROUP] = 1
        self._scene = mujoco.MjvScene(model, maxgeom=_MAX_GEOMS)
        self._scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = shadows
        self._scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = shadows
        self._gl: Any = make_context(backend, size)
        try:
            self._allocate(size)
        except Exception as error:  # PyOpenGL and MuJoCo each raise in their own way
            self._gl.free()
            raise SimulatorError(
                f"the renderer {backend} starts, but cannot draw images of {size} x {size} pixels"
                f" ({type(error).__name__}: {' '.join(str(error).split())}); run: tgrpo doctor"
            ) from None

    def _allocate(self, size: int) -> None:
        self._gl.make_current()
        self._size = size
        self._model.vis.global_.offwidth = self._model.vis.global_.offheight = size
        self._context = mujoco.MjrContext(self._model, mujoco.mjtFontScale.mjFONTSCALE_100)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)

    def render(self, data: mujoco.MjData, camera: int, size: int) -> NDArray[np.uint8]:
        """The image of a fixed camera, (size, size, 3), RGB, rows from the bottom up as OpenGL and LIBERO have them."""
        if size > self._size:
            self._context.free()
            self._allocate(size)
        self._camera.fixedcamid = camera
        mujoco.mjv_updateScene(
            self._model, data, self._option, None, self._camera, mujoco.mjtCatBit.mjCAT_ALL, self._scene
        )
        viewport = mujoco.MjrRect(0, 0, size, size)
        self._gl.make_current()
        mujoco.mjr_render(viewport, self._scene, self._context)
        image = np.empty((size, size, 3), np.uint8)
        mujoco.mjr_readPixels(image, None, viewport, self._context)
        return image

    def close(self) -> None:
        """Frees the OpenGL context. May be called twice."""
        if self._gl is not None:
            self._context.free()
            self._gl.free()
            self._gl = None
