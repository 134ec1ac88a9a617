"""Downloads, against a hub on this machine's loopback. Each fetch is a process of its own, as for a user."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from stages.policy import checkpoint, hub
from stages.policy.policy import VLAPolicy
from tests.policy.fake_hub import COMMIT, FakeHub, serve
from tests.policy.tiny import LORA, make_policy

ROOT = Path(__file__).parents[2]
FETCH = """
import logging, sys
from stages.errors import TgrpoError
from stages.policy import hub

logging.basicConfig(format="%(message)s", level=logging.INFO)
logging.getLogger("httpx2").setLevel(logging.ERROR)
try:
    print(hub.fetch(hub.parse(sys.argv[1])))
except TgrpoError as error:
    sys.exit(f"{type(error).__name__}: {error}")
"""
Fetch = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hub") / "model"
    make_policy().save_base(folder)
    (folder / "modeling_prismatic.py").write_text("raise SystemExit")
    return folder


@pytest.fixture
def fake(model: Path) -> Iterator[FakeHub]:
    with serve() as served:
        served.models["me/model"] = model
        yield served


@pytest.fixture
def fetch(fake: FakeHub, tmp_path: Path) -> Fetch:
    def run(name: str, **env: str) -> subprocess.CompletedProcess[str]:
        here = {
            "HF_ENDPOINT": fake.url,
            "HF_HOME": str(tmp_path / "home"),
            "NO_PROXY": "127.0.0.1",
            "PYTHONPATH": str(ROOT),
        }
        return subprocess.run(
            [sys.executable, "-c", FETCH, name],
            env={**os.environ, **here, **env},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=120,
        )

    return run


def test_names_of_the_hub_and_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    assert hub.parse("openvla/openvla-7b") == hub.HubId("openvla/openvla-7b")
    assert hub.parse("openvla/openvla-7b@v1.0") == hub.HubId("openvla/openvla-7b", "v1.0")
    assert hub.parse("openvla/openvla-7b@refs/pr/3") == hub.HubId("openvla/openvla-7b", "refs/pr/3")
    assert str(hub.HubId("a/b", "c")) == "a/b@c"
    for path in ("data/missing", "checkpoint", "a/b/c", "/a/b", "../a", "a/..", "./a", "a/b@", "a b/c"):
        assert hub.parse(path) is None, path


def test_a_model_is_downloaded_once_and_loads(fetch: Fetch, fake: FakeHub, model: Path) -> None:
    first = fetch("me/model")
    assert first.returncode == 0, first.stderr
    folder = Path(first.stdout.strip())
    assert folder.name == COMMIT and first.stdout.count("\n") == 1
    assert "downloading me/model: 0.3 MiB in 5 files" in first.stderr
    assert (folder / "model.safetensors").read_bytes() == (model / "model.safetensors").read_bytes()
    assert not (folder / "modeling_prismatic.py").exists()  # code stays where it is
    VLAPolicy.load(folder, device="cpu")
    fake.requests.clear()
    again = fetch("me/model@main")
    assert again.stdout == first.stdout and again.stderr == ""
    assert fake.downloads() == []
    fake.requests.clear()
    assert fetch(f"me/model@{COMMIT}").stdout == first.stdout
    assert fake.requests == []  # a commit that is whole needs no hub


def test_without_a_connection_the_cache_serves(fetch: Fetch, fake: FakeHub) -> None:
    found = fetch("me/model").stdout
    fake.requests.clear()
    for env in ({"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9"}):
        run = fetch("me/model", **env)
        assert run.stdout == found, run.stderr
        assert f"taking version {COMMIT[:12]} from the cache" in run.stderr
    assert fake.requests == []


def test_a_download_that_broke_off_goes_on_with_what_it_lacks(fetch: Fetch, fake: FakeHub) -> None:
    fake.cut_off.add("model.safetensors")
    broken = fetch("me/model")
    assert broken.returncode == 1 and broken.stdout == ""
    assert len(broken.stderr.splitlines()) == 2, broken.stderr  # what is downloaded, and how it ended
    assert "TgrpoError: me/model cannot be downloaded" in broken.stderr and "whole files are kept" in broken.stderr
    offline = fetch("me/model", HF_HUB_OFFLINE="1")
    assert offline.returncode == 1 and "is not whole in the cache" in offline.stderr
    fake.cut_off.clear()
    fake.requests.clear()
    assert fetch("me/model").returncode == 0
    assert fake.downloads() == ["model.safetensors"]


@pytest.mark.parametrize(
    ("name", "env", "says"),
    [
        ("me/nothing", {}, "ArtifactError: me/nothing is neither a folder here nor a public model"),
        ("me/gated", {}, "ArtifactError: me/gated is gated: ask for access"),
        ("me/private", {}, "ArtifactError: me/private: http://127.0.0.1:"),
        ("me/model@v9", {}, "ArtifactError: me/model@v9: http://127.0.0.1:"),
        ("me/empty", {}, "ArtifactError: me/empty is no checkpoint"),
        ("me/model", {"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE is set; unset it"),
        ("me/model", {"HF_ENDPOINT": "http://127.0.0.1:9"}, "check the connection and run it again"),
    ],
)
def test_what_cannot_be_had_is_one_line_with_the_remedy(
    fetch: Fetch, fake: FakeHub, tmp_path: Path, name: str, env: dict[str, str], says: str
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "README.json").write_text("{}")
    fake.models |= {"me/gated": fake.models["me/model"], "me/empty": tmp_path / "empty"}
    fake.gated.add("me/gated")
    fake.private.add("me/private")
    run = fetch(name, **env)
    assert run.returncode == 1 and run.stdout == ""
    assert says in run.stderr and len(run.stderr.splitlines()) == 1, run.stderr


def test_a_disk_that_is_too_small_is_found_out_before_the_download(fetch: Fetch, fake: FakeHub) -> None:
    fake.claimed_size["model.safetensors"] = 10**18
    run = fetch("me/model")
    assert run.returncode == 1 and "me/model needs 931322574.6 GiB of disk" in run.stderr
    assert len(run.stderr.splitlines()) == 1 and fake.downloads() == []


def test_an_adapter_names_its_base_on_the_hub_as_peft_does(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = VLAPolicy.load(model, device="cpu")
    policy.add_lora(LORA, seed=0)
    policy.save_adapter(tmp_path / "adapter", f"me/model@{COMMIT}")
    config = checkpoint.read_json(tmp_path / "adapter" / "adapter_config.json")
    assert (config["base_model_name_or_path"], config["revision"]) == ("me/model", COMMIT)
    asked = []
    monkeypatch.setattr(hub, "fetch", lambda wanted: asked.append(wanted) or model)
    assert checkpoint.base_of(tmp_path / "adapter") == model
    assert asked == [hub.HubId("me/model", COMMIT)]
