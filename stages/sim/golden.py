"""A golden frame: one scene, drawn here and compared with the picture of it that the project keeps.

It sees what version numbers cannot: a driver that draws without textures or shadows, and the darker floors of newer
MuJoCos, which cost published policies a fifth of their successes without any error: from 3.3.3 on MuJoCo heeds the mark
`sRGB` in a PNG file, which LIBERO's floors have. The scene's floor has it too.

`python -m stages.sim.golden osmesa --write` makes the picture anew.
"""

import os
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.errors import SimulatorError
from stages.params import SimParams
from stages.sim.assets import Assets
from stages.sim.backends import Backend, Drawing, answer_parent, drawing, drawing_from, run_in_child
from stages.sim.cache import cache_dir
from stages.sim.primitives import FLOOR_TEXTURE, primitive_digest, write_primitives

PICTURE = Path(__file__).with_name("golden.png")
TASK, STATE, SIZE = "libero_object/6", 0, 64

LIMIT = 6.0
"""Mean difference, of 255, up to which a frame shows the same scene. MuJoCo 3.3.3 draws one of 40."""

_PNG_HEADER = 33  # bytes before the first chunk that may hold the mark
_SRGB = b"\x00\x00\x00\x01sRGB\x00\xae\xce\x1c\xe9"


@dataclass(frozen=True)
class GoldenFrame:
    """How the frame drawn here compares with the picture. Differences are absolute, of 255."""

    drawn_by: Drawing
    picture_by: str  # what drew the picture
    mean_difference: float
    largest_difference: int
    mean: float  # brightness, of 255
    picture_mean: float

    @property
    def same(self) -> bool:
        return self.mean_difference <= LIMIT

    @property
    def exact_expected(self) -> bool:
        """Whether the very same software drew the picture, so that each byte should be equal."""
        return _name(self.drawn_by) == self.picture_by


def check_golden_frame(backend: Backend, egl_device: int | None = None) -> GoldenFrame:
    """Draws the frame with a backend, in a process of its own, and compares.

    Args:
        backend: what to draw with.
        egl_device: as `sim.egl_device`.

    Raises:
        SimulatorError: the simulator or the backend does not start.
    """
    found = run_in_child(__name__, backend, egl_device)
    return GoldenFrame(**{**found, "drawn_by": drawing_from(found["drawn_by"])})


def compare(frame: NDArray[np.uint8], drawn_by: Drawing) -> GoldenFrame:
    """Compares a frame (64, 64, 3) with the picture."""
    from PIL import Image

    with Image.open(PICTURE) as file:
        picture, picture_by = np.asarray(file.convert("RGB")), file.info["drawn_by"]
    difference = np.abs(frame.astype(int) - picture.astype(int))
    return GoldenFrame(
        drawn_by=drawn_by,
        picture_by=picture_by,
        mean_difference=round(float(difference.mean()), 3),
        largest_difference=int(difference.max()),
        mean=round(float(frame.mean()), 1),
        picture_mean=round(float(picture.mean()), 1),
    )


def draw(backend: Backend) -> tuple[NDArray[np.uint8], Drawing]:
    """The frame (64, 64, 3) and what drew it: an official start, in primitive assets, with the benchmark's shadows."""
    from stages.sim.env import LiberoEnv
    from stages.sim.tasks import load_task, official_states

    sim = SimParams(
        assets="primitive",
        assets_dir=None,
        renderer=backend,
        image_size=SIZE,
        shadows=True,
        multisampling=4,
        observe="latest",
        physics="exact",
        action_repeat=1,
        settle_steps=0,
        arm_noise=0,
        egl_device=None,
        timeout_s=60,
        max_restarts=0,
    )
    task = load_task(TASK)
    env = LiberoEnv(task, sim, _assets())
    env.set_state(official_states(task)[STATE])
    return env.render(), drawing(backend)  # in this order: OpenGL has no name before the first image


def _assets() -> Assets:
    """The primitive set, its floor marked as sRGB: MuJoCo 3.3.2 overlooks the mark, as it does in LIBERO's textures."""
    digest = f"golden-{primitive_digest()}"
    folder = cache_dir() / "assets" / digest
    try:
        write_primitives(folder)
        floor = folder / FLOOR_TEXTURE
        plain = floor.read_bytes()
        if _SRGB not in plain:
            with tempfile.NamedTemporaryFile(dir=folder, delete=False) as file:
                file.write(plain[:_PNG_HEADER] + _SRGB + plain[_PNG_HEADER:])
            os.replace(file.name, floor)
    except OSError as error:
        raise SimulatorError(f"cannot write {folder}: {error.strerror}; set TGRPO_CACHE to another folder") from None
    return Assets("primitive", folder, digest)


def _name(drawn_by: Drawing) -> str:
    return f"{drawn_by.renderer}, {drawn_by.version}"


def _work(backend: Backend) -> dict[str, Any]:
    return asdict(compare(*draw(backend)))


def _write(backend: Backend) -> None:
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    frame, drawn_by = draw(backend)
    text = PngInfo()
    text.add_text("drawn_by", _name(drawn_by))
    Image.fromarray(frame).save(PICTURE, pnginfo=text)


if __name__ == "__main__":
    if sys.argv[2:] == ["--write"]:
        _write("osmesa")
    else:
        answer_parent(_work)
