"""The simulator. Whoever imports anything from here has mujoco imported without OpenGL.

By itself mujoco loads what `MUJOCO_GL` names when it is first imported: it fails where that is not installed, and binds the
process to it. Here the renderer decides, when it makes its first context (`backends`).
"""

import contextlib
import os

_users = os.environ.get("MUJOCO_GL")
os.environ["MUJOCO_GL"] = "disable"
with contextlib.suppress(ImportError):  # `runtime.check_versions` says that it is missing, with the remedy
    import mujoco  # noqa: F401
if _users is None:
    del os.environ["MUJOCO_GL"]
else:
    os.environ["MUJOCO_GL"] = _users
