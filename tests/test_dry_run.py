"""What doctor says of the params' policy: download, memory, time. The hub is one on this machine's loopback."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from stages import dry_run
from stages.checks import FAILURE, OK, WARNING, Check
from stages.dry_run import examine_policy
from stages.params import Params, load_params
from stages.policy.config import OpenVLAConfig
from stages.roofline import Rates
from tests.conftest import ROOT
from tests.policy.fake_hub import FakeHub, serve
from tests.policy.tiny import make_policy

GIB = 2**30
SAY = """
import json, sys
from pathlib import Path
from stages.dry_run import examine_policy
from stages.params import load_params
from stages.policy import hub

params = load_params(Path(sys.argv[1]))
for name in sys.argv[2:]:
    if name.startswith("fetch:"):
        hub.fetch(hub.parse(name.removeprefix("fetch:")))
        continue
    policy = params.policy.model_copy(update={"base": name, "device": "cpu"})
    first = next(iter(examine_policy(params.model_copy(update={"policy": policy}))))
    print(json.dumps([first.severity, first.found]))
"""
Say = Callable[..., list[list]]


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[FakeHub]:
    make_policy().save_base(tmp_path / "model")
    with serve() as served:
        served.models["me/model"] = tmp_path / "model"
        yield served


@pytest.fixture
def say(fake: FakeHub, tmp_path: Path) -> Say:
    """The first line on each base, all from one process, for which the hub's address is fixed."""

    def run(*names: str, **env: str) -> list[list]:
        here = {"HF_ENDPOINT": fake.url, "HF_HOME": str(tmp_path / "home"), "NO_PROXY": "127.0.0.1"}
        done = subprocess.run(
            [sys.executable, "-c", SAY, str(ROOT / "params.yaml"), *names],
            env={**os.environ, **here, "PYTHONPATH": str(ROOT), **env},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]

    return run


def test_a_download_is_foretold_and_not_made(say: Say, fake: FakeHub) -> None:
    fake.claimed_size["model.safetensors"] = 3 * GIB
    coming, nowhere = say("me/model", "me/other")
    assert coming[0] == OK
    assert "me/model: would download 3.0 GiB in 5 files, as the hub says" in coming[1]
    assert fake.downloads() == []
    assert nowhere == [FAILURE, nowhere[1]]
    assert "me/other is neither a folder here nor a public model" in nowhere[1]


def test_a_download_that_no_disk_holds(say: Say, fake: FakeHub) -> None:
    fake.claimed_size["model.safetensors"] = 10**18
    assert say("me/model")[0][0] == FAILURE


def test_the_cache_is_enough_without_the_hub(say: Say) -> None:
    fetched = say("fetch:me/model", "me/model")[0]
    assert fetched[0] == OK and "the hub has no newer version" in fetched[1]
    cached, unknown = say("me/model", "me/other", HF_HUB_OFFLINE="1")
    assert cached[0] == OK and "already in the hub's cache" in cached[1]
    assert unknown[0] == WARNING and "would download about 14.0 GiB" in unknown[1]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Stands in for what is at hand: its memory, and what it measures."""

    def be(kind: str, memory: float) -> None:
        monkeypatch.setattr(dry_run, "_device_memory", lambda device: (int(memory * GIB), kind))
        monkeypatch.setattr("stages.policy.devices.resolve_device", lambda name: torch.device(kind))
        monkeypatch.setattr("stages.roofline.measure_rates", lambda device, dtype, read: Rates(2e10, 1e11))
        base = dry_run._Base(OpenVLAConfig(), 2, Check("policy", OK, "OpenVLA-7B"))
        monkeypatch.setattr(dry_run, "_base", lambda name: base)

    return be


def _lines(params: Params) -> dict[str, Check]:
    return {check.name: check for check in examine_policy(params)}


def test_openvla_7b_on_a_small_cpu(machine: Callable[..., None]) -> None:
    profile = load_params(ROOT / "params" / "openvla-7b.yaml", ["policy.gradient_checkpointing=true"])
    machine("cpu", 24)
    lines = _lines(profile)
    assert lines["memory"].severity == FAILURE
    assert "does not fit: set policy.dtype=bfloat16, which takes 17.9 GiB" in lines["memory"].found
    assert lines["time, roughly"].severity == WARNING
    assert "not practical on cpu: an iteration" in lines["time, roughly"].found
    assert lines["time on a GPU"].found.startswith(
        "A100 40 GB, a processor for each environment: an iteration 2.3 minutes"
    )
    machine("cpu", 12)
    assert "it takes a device with at least 17.9 GiB" in _lines(profile)["memory"].found


def test_openvla_7b_on_a_gpu(machine: Callable[..., None]) -> None:
    """There it computes as stored; an update finds by itself how many decisions it can take at once."""
    profile = load_params(ROOT / "params" / "openvla-7b.yaml", ["policy.gradient_checkpointing=true"])
    machine("cuda", 40)
    lines = _lines(profile)
    assert lines["memory"].severity == lines["time, roughly"].severity == OK
    assert "about 18.4 GiB in bfloat16 of 40.0 GiB on cuda: weights 14.0 GiB" in lines["memory"].found
    assert "time on a GPU" not in lines
    machine("cuda", 18.2)
    tight = _lines(profile)["memory"]
    assert tight.severity == WARNING and "it fits with fewer decisions in a pass" in tight.found


def test_the_embedded_policy(params: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    lines = _lines(params)
    assert [check.severity for check in lines.values()] == [OK] * 4
    assert "0.5 million parameters, 2.1 MiB" in lines["policy"].found
    assert "nothing to download" in lines["policy"].found
    assert f"{params.train.iterations} iterations" in lines["time, roughly"].found


def test_a_base_that_is_nowhere(params: Params, tmp_path: Path) -> None:
    policy = params.policy.model_copy(update={"base": str(tmp_path / "none")})
    (check,) = examine_policy(params.model_copy(update={"policy": policy}))
    assert check.severity == FAILURE
    assert "is no checkpoint" in check.found


@pytest.mark.parametrize(
    ("change", "says"),
    [({"task": "libero_objekt/6"}, "libero_object"), ({"device": "meta"}, "expected auto, cpu, cuda")],
)
def test_params_that_name_nothing_are_a_line_of_the_report(params: Params, change: dict[str, str], says: str) -> None:
    policy = params.policy.model_copy(
        update={"device": change.get("device", "cpu"), "base": str(ROOT / params.policy.base_of(params.task))}
    )
    params = params.model_copy(update={"policy": policy, "task": change.get("task", params.task)})
    last = list(examine_policy(params))[-1]
    assert last.severity == FAILURE and says in last.found
