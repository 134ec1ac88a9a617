"""Replays of groups that the real simulator made: equal to the last bit, and every difference found and named."""

import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import numpy as np
import pytest
import zarr

from stages.demos import demos
from stages.describe import describe
from stages.errors import ArtifactError, MismatchError, SimulatorError
from stages.params import load_params
from stages.replay import film, replay
from stages.rewards.scorer import Scorer
from stages.sampling import Wanted, sample_groups
from stages.sim.backends import choose_backend
from stages.sim.env import LiberoEnv
from stages.store.groups import open_group, write_group
from stages.store.schema import GroupAttrs
from stages.types import InitialState
from stages.workspace import open_env, open_policy, task_reward
from tests.conftest import ROOT, SHORT, Run
from tests.sim.sample import LIBERO_ASSETS

Tgrpo = Callable[..., Run]
PARAMS = load_params(ROOT / "params.yaml", [*SHORT, "rollout.envs=2", "demos.episodes=1", "demos.workers=1"])
BASE = ROOT / PARAMS.policy.base_of(PARAMS.task)


class Notes:
    """A reporter that keeps what it is told."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def bar(self, label: str, total: int) -> Any:
        from stages.reporting import Silent

        return Silent().bar(label, total)


@pytest.fixture(scope="module")
def sampled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two trajectories of six decisions, as `tgrpo rollout` makes them."""
    path = tmp_path_factory.mktemp("groups") / "g.zarr"
    with open_env(PARAMS, 2) as env:
        policy = open_policy(PARAMS, BASE)
        with Scorer(task_reward(PARAMS, env)) as scorer:
            list(sample_groups(policy, env, scorer, PARAMS, [Wanted(0, path, {})], iteration=1))
    return path


@pytest.fixture
def copy(sampled: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sampled, tmp_path / "g.zarr"))


def run(path: Path, **options: Any) -> dict[str, Any]:
    """Replays one group; what its handle says beyond the group's own."""
    (handle,) = replay(PARAMS, [describe(path)], **options)
    return dict(handle.extra)


def edit(path: Path, change: Callable[[zarr.Group, dict[str, Any]], None]) -> None:
    """Changes a group's arrays or record, so that it still passes for whole."""
    group = zarr.open_group(path, mode="r+")
    record: dict[str, Any] = json.loads(json.dumps(group.attrs["tgrpo"]))
    change(group, record)
    files = [file for file in path.rglob("*") if file.is_file() and file != path / "zarr.json"]
    group.attrs["tgrpo"] = {**record, "files": len(files), "bytes": sum(file.stat().st_size for file in files)}


def test_a_sampled_group_replays_bit_for_bit(sampled: Path) -> None:
    group = open_group(sampled)
    assert group["length"][:].tolist() == [6, 6]
    assert not np.array_equal(group["action"][0], group["action"][1])
    assert run(sampled) == {"trajectories": 2, "states": 1 + 2 * 24, "images": 12}
    assert run(sampled, images=False, trajectory=1) == {"trajectories": 1, "states": 1 + 24, "images": 0}


def test_a_demonstration_replays_up_to_its_success(tmp_path: Path) -> None:
    (handle,) = demos(PARAMS, tmp_path / "demos")
    group = open_group(handle.path)
    steps = int(group["env_steps"][:].sum())
    assert group.successes().all() and steps % PARAMS.sim.action_repeat  # the last decision ended early
    assert len(group.states(0)) == 1 + steps
    assert run(handle.path) == {"trajectories": 1, "states": 1 + steps, "images": group.decisions}


def test_groups_of_one_task_share_an_environment(sampled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    real = LiberoEnv.__init__
    monkeypatch.setattr(LiberoEnv, "__init__", lambda env, *args: (made.append(env), real(env, *args))[1])
    handle = describe(sampled)
    assert [done.path for done in replay(PARAMS, [handle, handle], images=False)] == [sampled, sampled]
    assert len(made) == 1


def _next_float(array: Any, index: Any) -> None:
    array[index] = np.nextafter(array[index], np.inf)


@pytest.mark.parametrize(
    ("name", "index", "says"),
    [
        ("sim_state", (1, 3, 1, 20), r"trajectory 1, decision 3, environment step 2 of 4: state differs in 1 of 110 entries, "),
        ("initial_state", (5,), "the settled start: state differs in 1 of 110 entries"),
        ("proprio", (1, 2, 0), r"trajectory 1, decision 2: proprio differs in 1 of 8 entries"),
        ("object_pos", (0, 4, 0, 2), r"trajectory 0, decision 4, environment step 4 of 4: object_pos differs in 1 of 21"),
    ],
)  # fmt: skip
def test_the_last_bit_of_a_number_is_found(copy: Path, name: str, index: Any, says: str) -> None:
    edit(copy, lambda group, record: _next_float(group[name], index))
    with pytest.raises(MismatchError, match=rf"g\.zarr does not replay: {says}") as caught:
        run(copy)
    assert "\n" not in str(caught.value)


def test_another_action_is_found(copy: Path) -> None:
    def change(group: zarr.Group, record: Any) -> None:
        group["action"][0, 2, 0] += 1e-9

    edit(copy, change)
    with pytest.raises(
        MismatchError, match=r"trajectory 0, decision 2, environment step 1 of 4: state differs in .* at most by .*e-"
    ):
        run(copy)


def test_a_success_that_was_none_is_found(copy: Path) -> None:
    def change(group: zarr.Group, record: Any) -> None:
        group["success"][0, 5] = True

    edit(copy, change)
    with pytest.raises(MismatchError, match=r"decision 5, .*: success is False, the group has True"):
        run(copy)


def test_one_level_of_one_pixel_is_found(copy: Path) -> None:
    def change(group: zarr.Group, record: Any) -> None:
        group["image"][1, 5, 40, 40, 2] ^= 1

    edit(copy, change)
    with pytest.raises(
        MismatchError, match=r"trajectory 1, decision 5: image differs in 1 of 27648 .* by 1 \(entry 40, 40, 2\)"
    ):
        run(copy)
    assert run(copy, images=False)["images"] == 0


def test_other_assets_are_refused(copy: Path) -> None:
    edit(copy, lambda group, record: record["params"]["assets"].update(digest="0123456789abcdef"))
    with pytest.raises(
        MismatchError, match=r"made with primitive assets of digest 0123456789abcdef, found .*; they come"
    ):
        run(copy)


def test_other_versions_and_renderers_are_said_aloud(copy: Path) -> None:
    reporter = Notes()
    edit(copy, lambda group, record: record["params"].update(renderer="paper"))
    assert run(copy, reporter=reporter)["images"] == 0
    assert len(reporter.notes) == 1 and "was rendered by paper, here is " in reporter.notes[0]

    reporter = Notes()
    edit(copy, lambda group, record: record["versions"].update(mujoco="3.3.1"))
    assert run(copy, reporter=reporter)["states"] == 49
    assert "was made with mujoco 3.3.1, here is 3.3.2: a difference is likely" in reporter.notes[0]
    edit(copy, lambda group, record: _next_float(group["sim_state"], (0, 0, 0, 3)))
    with pytest.raises(MismatchError, match=r"does not replay: .*; the group was made with mujoco 3\.3\.1"):
        run(copy, reporter=reporter)


def test_a_film_runs_no_physics(sampled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any) -> None:
        raise AssertionError("physics ran")

    monkeypatch.setattr("stages.sim.env.LiberoEnv.step", refuse)
    done = film(PARAMS, describe(sampled), tmp_path / "new" / "g.mp4", size=33, camera="frontview")
    assert done.extra == {"trajectories": 2, "film": str(tmp_path / "new" / "g.mp4")}
    frames = iio.imread(tmp_path / "new" / "g.mp4")
    assert frames.shape == (13, 34, 66, 3)  # the start and 24 steps, every other one; even sizes for the codec
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["g.mp4"]
    one = film(PARAMS, describe(sampled), tmp_path / "new" / "g.mp4", trajectory=1, size=64, camera=None)
    assert one.extra["trajectories"] == 1 and iio.imread(tmp_path / "new" / "g.mp4").shape == (13, 64, 64, 3)


@pytest.fixture(scope="module")
def goal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A group of libero_goal with LIBERO's meshes, whose sampler moves cabinet and stove. A state does not hold these."""
    if not LIBERO_ASSETS.is_dir():
        pytest.skip("needs LIBERO's meshes")
    changes = {"assets": "libero", "assets_dir": str(LIBERO_ASSETS), "image_size": 64, "physics": "exact"}
    sim = PARAMS.sim.model_copy(update=changes)
    params = PARAMS.model_copy(update={"task": "libero_goal/0", "sim": sim})
    path = tmp_path_factory.mktemp("goal") / "g.zarr"
    start = InitialState("sampled", 7)
    with open_env(params, 2) as env:
        seen = env.reset([start] * 2)
        attrs = GroupAttrs(
            task=env.task.id,
            instruction=env.task.language,
            **vars(env.names),
            initial_state=str(start),
            labels=(),
            action_repeat=4,
            image_size=64,
            temperature=1.0,
            stop="each",
            max_env_steps=12,
            seed=0,
            iteration=None,
            inputs={},
            params={
                "sim": sim.model_dump(),
                "assets": {"kind": "libero", "digest": env.assets.digest},
                "renderer": choose_backend(sim.renderer),
            },
        )
        with write_group(
            path,
            attrs,
            trajectories=2,
            initial_state=seen.sim_state[0, 0],
            initial_scene=seen.scene[0],
            score=lambda initial, scenes, env_steps: (env_steps.astype(np.float32), env_steps.astype(np.int8)),
        ) as writer:
            for action in np.random.default_rng(0).uniform(-1, 1, (3, 2, 7)):
                after = env.step(action)
                nothing = np.zeros((2, 7), np.float32)
                writer.append(
                    mask=np.ones(2, np.bool_),
                    scene=after.scene,
                    image=seen.image,
                    proprio=seen.proprio,
                    action_token=nothing.astype(np.int32),
                    action=action,
                    action_label=action,
                    log_prob=nothing,
                    entropy=nothing,
                    env_steps=after.env_steps,
                    sim_state=after.sim_state,
                )
                seen = after
    return path


def test_a_group_of_another_suite_replays(goal: Path) -> None:
    assert run(goal) == {"trajectories": 2, "states": 1 + 2 * 12, "images": 6}


def test_a_group_of_an_earlier_version_replays(goal: Path, tmp_path: Path) -> None:
    def forget(group: zarr.Group, record: Any) -> None:
        del record["params"]["renderer"]
        for name in ("physics", "observe", "egl_device", "timeout_s", "max_restarts"):
            del record["params"]["sim"][name]

    path = Path(shutil.copytree(goal, tmp_path / "g.zarr"))
    edit(path, forget)
    reporter = Notes()
    assert run(path, reporter=reporter) == {"trajectories": 2, "states": 25, "images": 0}
    assert reporter.notes == [f"{path} does not say which renderer made its images: images are not compared"]


def test_a_film_has_the_fixtures_in_their_places(goal: Path, tmp_path: Path) -> None:
    film(PARAMS, describe(goal), tmp_path / "g.mp4", trajectory=0, size=64, camera=None)
    first = iio.imread(tmp_path / "g.mp4")[0].astype(float)
    seen = open_group(goal)["image"][0, 0].astype(float)
    assert np.abs(first - seen).mean() < 4  # the codec loses a little


def _descendants() -> set[int]:
    """All processes below this one."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    below, found = {os.getpid()}, set()
    while below := {pid for pid, parent in parents.items() if parent in below}:
        found |= below
    return found


@pytest.fixture(scope="module")
def incomplete(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """A rollout whose workers were killed before its fourth decision, and may not be replaced; and what it said."""
    params = PARAMS.model_copy(update={"sim": PARAMS.sim.model_copy(update={"max_restarts": 0})})
    out = tmp_path_factory.mktemp("incomplete") / "g.zarr"
    policy = open_policy(params, BASE)
    others, acts = _descendants(), []

    class Killer:
        def act(self, *args: Any) -> Any:
            acts.append(policy.act(*args))
            if len(acts) == 4:
                for pid in _descendants() - others:
                    os.kill(pid, signal.SIGKILL)
            return acts[-1]

    with (
        open_env(params, 2) as env,
        Scorer(task_reward(params, env)) as scorer,
        pytest.raises(SimulatorError) as caught,
    ):
        list(sample_groups(Killer(), env, scorer, params, [Wanted(0, out, {})], iteration=1))  # type: ignore[arg-type]
    assert not out.exists()
    yield out.with_name("g.incomplete.zarr"), str(caught.value)


def test_what_a_failed_rollout_kept_replays(incomplete: tuple[Path, str], sampled: Path) -> None:
    path, message = incomplete
    assert message.endswith(f"the decisions so far (3) are kept in {path}, marked incomplete") and "\n" not in message
    reporter = Notes()
    compared = run(path, reporter=reporter)
    assert compared == {"trajectories": 2, "states": 1 + 2 * 12, "images": 6, "incomplete": True}
    assert reporter.notes == [f"{path} is incomplete: the simulator failed after 3 decisions"]
    whole, kept = open_group(sampled), open_group(path, incomplete=True)
    for name in ("action", "sim_state", "image", "log_prob", "reward"):  # the same seed, so the same up to the failure
        np.testing.assert_array_equal(kept[name][:], whole[name][:, :3])


def test_training_refuses_what_is_incomplete(incomplete: tuple[Path, str], tgrpo: Tgrpo) -> None:
    path, _ = incomplete
    weighed = tgrpo("advantage", path)
    assert weighed.code == 1 and f"{path} is incomplete" in weighed.err and len(weighed.err.splitlines()) == 1
    with pytest.raises(ArtifactError, match="is incomplete"):
        open_group(path)
    shown = tgrpo("inspect", path)
    assert shown.code == 0 and "incomplete: the simulator failed after 3 decisions" in shown.out, shown.err


def test_the_command_line(copy: Path, tgrpo: Tgrpo, project: Path) -> None:
    good = tgrpo("replay", copy)
    assert good.code == 0, good.err
    (handle,) = good.handles
    assert (handle["kind"], handle["states"], handle["images"]) == ("group", 49, 12)
    assert handle["digest"] == describe(copy).digest  # so that it can be piped on
    filmed = tgrpo("replay", "--render", "g.mp4", "--size", 512, "--camera", "frontview", stdin=good.out)
    assert filmed.code == 0, filmed.err
    assert iio.imread(project / "g.mp4").shape == (13, 512, 1024, 3)
    edit(copy, lambda group, record: _next_float(group["sim_state"], (0, 0, 0, 3)))
    bad = tgrpo("replay", copy)
    assert bad.code == 1 and bad.out == "" and "Traceback" not in bad.err
    assert "tgrpo: " in bad.err and "does not replay: trajectory 0, decision 0, environment step 1 of 4" in bad.err


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        (["nowhere.zarr"], 1, "nowhere.zarr does not exist"),
        (
            ["GROUP", "--render", "g.mp4", "--camera", "nose"],
            1,
            "no camera 'nose' in libero_object/6; it has frontview,",
        ),
        (["GROUP", "--render", "g.mp4", "--size", "8"], 2, "expected 16 to 1024"),
        (["GROUP", "--render", "g.gif"], 2, "must end in .mp4"),
        (["GROUP", "GROUP", "--render", "g.mp4"], 2, "2 groups are given"),
        (["GROUP", "--size", "64"], 2, "--render OUT.mp4"),
        (["GROUP", "--trajectory", "2"], 2, "no trajectory 2; expected 0 to 1"),
        (["data/embedded/openvla-tiny/libero_object/6"], 2, "of kind 'checkpoint'"),
    ],
)
def test_bad_input_is_one_line(
    sampled: Path, tgrpo: Tgrpo, project: Path, args: list[str], code: int, says: str
) -> None:
    done = tgrpo("replay", *(sampled if arg == "GROUP" else arg for arg in args))
    assert done.code == code and says in done.err, done.err
    assert len(done.err.splitlines()) == 1 and done.out == ""
    assert not list(project.glob("*g.mp4"))
