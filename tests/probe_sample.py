"""Probes of libero_object/6 with generated meshes, recorded once for all tests of a process: one start, short episodes."""

import functools
import tempfile
from pathlib import Path

import pytest

from stages import probes
from stages.params import Params, load_params
from tests.conftest import ROOT

SIZE = 32  # pixels
STEPS = 120  # environment steps of an episode; the expert needs some 90


def sample_params() -> Params:
    params = load_params(ROOT / "params.yaml")
    return params.model_copy(
        update={
            "sim": params.sim.model_copy(update={"image_size": SIZE}),
            "rollout": params.rollout.model_copy(update={"max_env_steps": STEPS}),
        }
    )


def record(out: Path, checkpoint: Path | None = None) -> Path:
    """Records the probes of one start."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(probes, "STARTS", 1)
        patch.setattr(probes, "POLICY_EPISODES", 1)
        probes.record_probes(sample_params(), out, checkpoint)
    return out


@functools.cache
def recorded() -> Path:
    """The folder of the recording; nobody may write to it."""
    return record(Path(tempfile.mkdtemp(prefix="tgrpo-probes-")) / "probes")
