"""Each command for real, on the real simulator, as its users type it. Episodes are kept to a few decisions."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import zarr

from stages.rewards.program import Reward
from stages.rewards.scorer import Scorer
from stages.store.groups import open_group
from tests.conftest import ROOT, Run, short

Tgrpo = Callable[..., Run]


def test_the_pipe_as_typed(tgrpo_here: Tgrpo, project: Path) -> None:
    pipe = (
        f"{sys.executable} -m tgrpo_cli.main rollout --envs 2 --groups 2 {' '.join(short())}"
        f" | {sys.executable} -m tgrpo_cli.main advantage --a1 0.3 --a2 0.7"
        f" | {sys.executable} -m tgrpo_cli.main update"
    )
    done = subprocess.run(pipe, shell=True, cwd=project, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    handle = json.loads(done.stdout)
    assert handle["kind"] == "checkpoint" and handle["iteration"] == 1
    assert handle["parent"] == "data/embedded/openvla-tiny/libero_object/6"
    groups = sorted((project / "data" / "groups").glob("*.zarr"))
    assert [path.name for path in groups] == ["0001.zarr", "0002.zarr"]

    # Any zarr reader opens a group, and what it holds is what a rollout promises.
    group = zarr.open(groups[0], mode="r")
    assert group["image"].shape == (2, 6, 96, 96, 3)
    np.testing.assert_array_equal(group["image"][0, 0], group["image"][1, 0])  # one initial state
    assert (group["log_prob"][:] <= 0).all() and (group["log_prob"][:] < -1e-3).any()
    assert group["mask"][:].all() and (group["length"][:] == 6).all()
    other = zarr.open(groups[1], mode="r")
    assert not np.array_equal(group["initial_state"][:], other["initial_state"][:])

    # The stored group scores the same offline, with nothing but what it carries.
    stored = open_group(groups[0])
    with Scorer(Reward.from_json(stored.attrs.params["reward"], "test")) as scorer:
        score = scorer.on(stored.attrs.task, stored.names, stored.attrs.max_env_steps)
        reward, milestone = score(stored.initial_scene(), stored.scene(), stored["env_steps"][:])
    np.testing.assert_array_equal(reward, stored["reward"][:])
    np.testing.assert_array_equal(milestone, stored["milestone"][:])

    # Its advantages are equation 8 of its rewards.
    advantages = zarr.open(project / "data" / "advantages" / "0001.zarr", mode="r")
    returns = stored["reward"][:].astype(float).sum(1)
    if returns.std() > 0:
        expected_t = (returns - returns.mean()) / returns.std(ddof=1)
        np.testing.assert_allclose(advantages["trajectory_advantage"][:], expected_t)
        np.testing.assert_allclose(
            advantages["advantage"][:], 0.3 * advantages["step_advantage"][:] + 0.7 * expected_t[:, None]
        )

    # With another reward the groups update the same checkpoint.
    (project / "other.py").write_text(
        "import numpy as np\n\ndef compute_reward(state, info):\n"
        "    return -float(np.linalg.norm(state.ee_pos - state.objects[state.target].pos))\n"
    )
    again = (
        f"{sys.executable} -m tgrpo_cli.main rescore data/groups --reward other.py"
        f" | {sys.executable} -m tgrpo_cli.main advantage --a1 0.3 --a2 0.7"
        f" | {sys.executable} -m tgrpo_cli.main update"
    )
    done = subprocess.run(again, shell=True, cwd=project, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["parent"] == handle["parent"]
    far = -np.linalg.norm(stored["ee_pos"][:] - stored["object_pos"][:, :, 0], axis=-1)
    np.testing.assert_allclose(open_group(project / "data" / "groups" / "0003.zarr")["reward"][:], far, rtol=1e-6)

    # The checkpoint can be used and shown; so can the group, with its picture.
    evaluation = tgrpo_here("eval", handle["path"], "--episodes", 2, *short("eval.envs=2"))
    assert evaluation.code == 0, evaluation.err
    assert evaluation.handles[0]["episodes"] == 2
    shown = tgrpo_here("inspect", "data/groups/0001.zarr")
    assert shown.code == 0, shown.err
    assert "libero_object/6" in shown.out and (project / "data" / "groups" / "0001.png").stat().st_size > 10_000
    for path in ("data/advantages/0001.zarr", handle["path"], evaluation.handles[0]["path"], "data/groups"):
        assert tgrpo_here("inspect", path).code == 0


def test_demonstrations_become_a_base_that_acts(tgrpo: Tgrpo, tgrpo_here: Tgrpo, project: Path) -> None:
    demos = tgrpo("demos", "--episodes", 2, "--set", "demos.workers=2", "--out", "data/demos")
    assert demos.code == 0, demos.err
    assert [handle["successes"] for handle in demos.handles] == [1, 1]
    group = open_group(project / "data" / "demos" / "000.zarr")
    assert group["success"][0, -1] and not group["success"][0, :-1].any()
    noise = group["action"][:] - group["action_label"][:]
    assert np.abs(noise[..., :3]).max() > 0 and (noise[..., 3:] == 0).all()

    base = tgrpo_here("sft", "--updates", 3, "--set", "sft.batch_size=8", "--out", "data/base", stdin=demos.out)
    assert base.code == 0, base.err
    rollout = tgrpo_here("rollout", "--envs", 2, "--checkpoint", "data/base", "--stop", "each", "--groups", 1, *short())
    assert rollout.code == 0, rollout.err
    assert rollout.handles[0]["checkpoint"] == "data/base"

    # Demonstrations were sampled by no policy, so there is nothing to update.
    weighed = tgrpo_here("advantage", "data/demos/000.zarr")
    assert weighed.code == 1 and "one trajectory" in weighed.err


def test_inputs_that_do_not_belong_together_are_refused(tgrpo_here: Tgrpo, project: Path) -> None:
    group = tgrpo_here("rollout", "--envs", 2, "--groups", 1, "--out", "data/g.zarr", *short())
    assert group.code == 0, group.err
    again = tgrpo_here("rollout", "--envs", 2, "--groups", 1, "--out", "data/g.zarr", *short())
    assert again.code == 1 and "exists" in again.err

    weighed = tgrpo_here("advantage", "--out", "data/a.zarr", stdin=group.out)
    assert weighed.code == 0, weighed.err
    shutil.copytree(ROOT / "data" / "embedded" / "openvla-tiny" / "libero_object" / "6", project / "other")
    (project / "other" / "note").write_text("another checkpoint")
    mismatch = tgrpo_here("update", "data/a.zarr", "--checkpoint", "other")
    assert mismatch.code == 1 and "is not the checkpoint that sampled" in mismatch.err

    # A group that changed after its handle was printed, or after its advantages were computed.
    next((project / "data" / "g.zarr" / "reward").glob("c.*")).unlink()
    changed = tgrpo_here("advantage", stdin=group.out)
    assert changed.code == 1 and len(changed.err.strip().splitlines()) == 1
    stale = tgrpo_here("update", "data/a.zarr")
    assert stale.code == 1 and len(stale.err.strip().splitlines()) == 1

    single = tgrpo_here("rollout", "--envs", 1, "--groups", 1, "--out", "data/single.zarr", *short())
    assert single.code == 0, single.err
    alone = tgrpo_here("advantage", "data/single.zarr")
    assert alone.code == 1 and "tgrpo rollout --envs 4" in alone.err


def test_a_killed_rollout_leaves_nothing_that_looks_whole(project: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "tgrpo_cli.main", "rollout", "--envs", "2", "--groups", "1", "--out", "data/g.zarr"],
        cwd=project,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while not list((project / "data").glob(".g.zarr.partial-*")):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (project / "data" / "g.zarr").exists()


def test_no_renderer_is_one_line_with_the_package_to_install(tgrpo_here: Tgrpo) -> None:
    run = tgrpo_here("rollout", "--set", "sim.renderer=egl", *short())
    if run.code == 0:
        pytest.skip("EGL works here")
    assert run.code == 1 and "egl" in run.err.lower() and "Traceback" not in run.err, run.err


def test_doctor_says_that_all_is_well(tgrpo: Tgrpo) -> None:
    run = tgrpo("doctor")
    assert run.code == 0, run.out + run.err
    assert "mujoco 3.3.2" in run.out and "primitive" in run.out


@pytest.mark.slow
def test_a_full_disk_is_one_line_and_nothing_half_written(tgrpo: Tgrpo, project: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root to mount a small disk")
    small = project / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", str(small)], check=False).returncode:
        pytest.skip("cannot mount here")
    try:
        run = tgrpo("rollout", "--envs", 2, "--out", "small/g.zarr", "--groups", 1, *short())
        assert run.code == 1 and "disk is full" in run.err and "Traceback" not in run.err
        assert list(small.iterdir()) == []
    finally:
        subprocess.run(["umount", str(small)], check=True)
