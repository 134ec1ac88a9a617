"""A run's figures in TensorBoard's event files, read back, and in Weights & Biases where it is installed."""

import importlib.util
import struct
import time
from collections.abc import Iterator
from math import nan
from pathlib import Path

import pytest

from stages.errors import TgrpoError
from stages.params import Params
from stages.trackers import figures, open_trackers, require_trackers


def tracking(params: Params, **changes: object) -> Params:
    return params.model_copy(update={"train": params.train.model_copy(update=changes)})


def scalars(folder: Path) -> Iterator[tuple[str, int, float]]:
    """Tag, step and value of every scalar in a folder of event files: records of length, crc, bytes, crc."""
    from tensorboardX.crc32c import crc32c
    from tensorboardX.proto.event_pb2 import Event

    def masked(data: bytes) -> int:
        crc = crc32c(data)
        return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF

    (path,) = folder.iterdir()
    data, at = path.read_bytes(), 0
    while at < len(data):
        (length,) = struct.unpack_from("<Q", data, at)
        record = data[at + 12 : at + 12 + length]
        assert struct.unpack_from("<I", data, at + 8)[0] == masked(data[at : at + 8])
        assert struct.unpack_from("<I", data, at + 12 + length)[0] == masked(record)
        event = Event.FromString(record)
        for value in event.summary.value:
            yield value.tag, event.step, value.simple_value
        at += length + 16


def test_figures_are_tagged_by_what_they_are_of() -> None:
    row = {"iteration": 3, "success": 0.5, "kl_end": 0.01, "value_loss": nan}
    line = {"iteration": 3, "seconds_sample": 4.0}
    assert figures(row, line, {"iteration": 3, "success_rate": 0.75, "mean_return": 90.0, "checkpoint": "ab"}) == {
        "sampled/success": 0.5,
        "update/kl_end": 0.01,
        "time/seconds_sample": 4.0,
        "validation/success_rate": 0.75,
        "validation/mean_return": 90.0,
    }
    assert figures(None, None, None) == {}


def test_event_files_hold_every_iteration_once_also_after_a_resume(params: Params, tmp_path: Path) -> None:
    plain = tracking(params, tensorboard=True, wandb=None)
    with open_trackers(plain, tmp_path) as log:
        log(0, {"validation/success_rate": 0.5})
        log(1, {"update/kl_end": 0.25})
        log(2, {"update/kl_end": 9.0})  # its checkpoint was lost with the power
    with open_trackers(plain, tmp_path) as log:
        log(0, {"validation/success_rate": 0.5})
        log(1, {"update/kl_end": 0.25})
        log(2, {"update/kl_end": 0.375})
        # On disk while the run goes on, for those who watch.
        assert ("update/kl_end", 1, 0.25) in set(scalars(tmp_path / "tensorboard"))
    assert sorted(scalars(tmp_path / "tensorboard")) == [
        ("update/kl_end", 1, 0.25),
        ("update/kl_end", 2, 0.375),
        ("validation/success_rate", 0, 0.5),
    ]


def test_no_trackers_write_nothing(params: Params, tmp_path: Path) -> None:
    with open_trackers(tracking(params, tensorboard=False, wandb=None), tmp_path) as log:
        log(1, {"update/kl_end": 0.25})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(importlib.util.find_spec("wandb") is not None, reason="wandb is installed")
def test_a_project_of_a_package_that_is_not_installed_is_one_line(params: Params) -> None:
    require_trackers(tracking(params, wandb=None))
    with pytest.raises(TgrpoError, match=r"pip install wandb.*train\.wandb=null") as caught:
        require_trackers(tracking(params, wandb="vla"))
    assert "\n" not in str(caught.value)


def test_weights_and_biases_gets_the_iterations_that_it_lacks(
    params: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb.sdk", reason="wandb is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    online = tracking(params, tensorboard=False, wandb="vla")
    require_trackers(online)
    with open_trackers(online, tmp_path) as log:
        log(0, {"validation/success_rate": 0.5})
        log(1, {"update/kl_end": 0.25})
    (written,) = (tmp_path / "wandb").glob("offline-run-*/run-*.wandb")
    deadline = time.monotonic() + 30  # its own process writes a little later
    while b"update/kl_end" not in written.read_bytes():
        assert time.monotonic() < deadline
        time.sleep(0.1)
