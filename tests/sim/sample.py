"""What the simulator's tests share: one task, quick params, and where LIBERO's own meshes may lie."""

from pathlib import Path

from stages.params import SimParams
from stages.sim.tasks import load_task

TASK = load_task("libero_object/6")
SIM = SimParams(
    assets="primitive",
    assets_dir=None,
    renderer="osmesa",
    image_size=48,
    shadows=False,
    multisampling=0,
    observe="latest",
    physics="exact",
    action_repeat=4,
    settle_steps=10,
    arm_noise=0.02,
    egl_device=None,
    timeout_s=60,
    max_restarts=3,
)
LIBERO_ASSETS = Path(__file__).parents[2].parent / "shared" / "libero-assets"
