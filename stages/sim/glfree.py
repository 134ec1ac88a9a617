"""mujoco, imported without OpenGL. Everything here takes it from this module.

By itself mujoco loads what `MUJOCO_GL` names when it is first imported: it fails where that is not installed, and binds the
process to it. Here the renderer decides, when it makes its first context (`backends`).
"""

import os

_users = os.environ.get("MUJOCO_GL")
os.environ["MUJOCO_GL"] = "disable"
try:
    import mujoco
finally:
    if _users is None:
        del os.environ["MUJOCO_GL"]
    else:
        os.environ["MUJOCO_GL"] = _users

__all__ = ["mujoco"]
