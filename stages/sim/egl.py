"""EGL's devices, and an OpenGL context on the one of them that was asked for."""

import ctypes
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from stages.errors import SimulatorError

EGL_DEVICE_VARIABLE = "MUJOCO_EGL_DEVICE_ID"
"""mujoco's and robosuite's own name for the device that renders; `sim.egl_device` is written into it."""

EGL_REMEDY = (
    "install the GPU's driver and EGL's loader (apt-get install libegl1), or render in software: "
    "--set sim.renderer=osmesa"
)

# From the EGL registry; PyOpenGL does not know the extensions that describe a device.
_EGL_VENDOR, _EGL_EXTENSIONS = 0x3053, 0x3055
_EGL_RENDERER_EXT, _EGL_DRM_DEVICE_FILE_EXT, _EGL_CUDA_DEVICE_NV = 0x335F, 0x3233, 0x323A


@dataclass(frozen=True)
class EglDevice:
    """One entry of EGL's list of devices, which `sim.egl_device` counts from 0."""

    index: int
    name: str
    software: bool

    def __str__(self) -> str:
        return f"{self.index} ({self.name})"


def egl_devices() -> tuple[EglDevice, ...]:
    """All of EGL's devices, also those that cannot be opened. Loads EGL into this process, but opens none."""
    from mujoco.egl import egl_ext as egl

    def function(name: str, result: Any, *arguments: Any) -> Any:
        return ctypes.CFUNCTYPE(result, *arguments)(egl.eglGetProcAddress(name))

    text = function("eglQueryDeviceStringEXT", ctypes.c_char_p, ctypes.c_void_p, ctypes.c_int)
    pointer = ctypes.POINTER(ctypes.c_ssize_t)
    number = function("eglQueryDeviceAttribEXT", ctypes.c_uint, ctypes.c_void_p, ctypes.c_int, pointer)
    devices = []
    for index, handle in enumerate(egl.eglQueryDevicesEXT()):
        device = ctypes.cast(handle, ctypes.c_void_p)
        extensions = (text(device, _EGL_EXTENSIONS) or b"").decode().split()
        software = "EGL_MESA_device_software" in extensions
        parts = ["Mesa in software"] if software else []
        if "EGL_EXT_device_query_name" in extensions:
            parts += [name.decode() for key in (_EGL_VENDOR, _EGL_RENDERER_EXT) if (name := text(device, key))]
        cuda = ctypes.c_ssize_t()
        if "EGL_NV_device_cuda" in extensions and number(device, _EGL_CUDA_DEVICE_NV, ctypes.byref(cuda)):
            parts.append(f"CUDA device {cuda.value}")
        if "EGL_EXT_device_drm" in extensions and (file := text(device, _EGL_DRM_DEVICE_FILE_EXT)):
            parts.append(file.decode())
        devices.append(EglDevice(index, ", ".join(parts) or "unnamed", software))
    egl.eglGetError()  # a name that a driver did not know must not be taken for a failure of the next call
    return tuple(devices)


def egl_context(size: int) -> Any:
    """mujoco's OpenGL context on the device that `MUJOCO_EGL_DEVICE_ID` names, else on the first that can be opened.

    All contexts of a process are on the device of the first.

    Raises:
        SimulatorError: there is no such device, or it cannot be opened; the message lists the devices.
        Exception: whatever PyOpenGL raises when EGL is not installed.
    """
    from mujoco import egl

    if egl.EGL_DISPLAY is None:
        egl.EGL_DISPLAY = _open_display(egl)

    class Context(egl.GLContext):
        _context = None  # lets one that could not be created be deleted without a second complaint

    return Context(size, size)


def _open_display(egl: Any) -> Any:
    devices = egl_devices()
    chosen = os.environ.get(EGL_DEVICE_VARIABLE)
    where = f"sim.egl_device or {EGL_DEVICE_VARIABLE}"
    if chosen is not None and not (chosen.strip().isdecimal() and int(chosen) < len(devices)):
        raise SimulatorError(f"there is no GPU {chosen!r} to render on, which {where} names; {_choice(devices)}")
    display = egl.create_initialized_egl_device_display()
    if display == egl.EGL.EGL_NO_DISPLAY:
        what = "no GPU" if chosen is None else f"the GPU {chosen}, which {where} names,"
        raise SimulatorError(f"{what} can be opened to render on; {_choice(devices)}")
    return display


def _choice(devices: Sequence[EglDevice]) -> str:
    if not devices:
        return f"EGL knows no device here; {EGL_REMEDY}"
    return f"EGL knows {', '.join(map(str, devices))}; choose one, or render in software: --set sim.renderer=osmesa"
