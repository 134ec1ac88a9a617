"""The staged loop and the fused loop write the same bytes, and a run that was cut off ends like one that was not."""

import csv
import shutil
from collections.abc import Callable
from pathlib import Path

from stages.params import load_params
from stages.store.artifacts import digest_of
from stages.train import train
from tests.conftest import Run, short

SETTINGS = (
    *("rollout.envs=2", "rollout.groups=2", "rollout.max_env_steps=24", "rollout.stop=each"),
    *("advantage.min_return_std=0", "update.minibatch=8"),
)


def test_two_iterations_staged_fused_and_resumed_are_byte_identical(
    tgrpo: Callable[..., Run], tgrpo_here: Callable[..., Run], project: Path, monkeypatch
) -> None:
    sets = [part for item in SETTINGS for part in ("--set", item)]
    previous = "data/embedded/openvla-tiny/libero_object/6"
    # The second iteration has nothing of the first but what is on disk; the first may run here.
    for k, run_command in (("001", tgrpo_here), ("002", tgrpo)):
        for command in (
            ["rollout", "--checkpoint", previous, "--out", f"data/staged/groups/{k}"],
            ["advantage", f"data/staged/groups/{k}", "--out", f"data/staged/advantages/{k}"],
            ["update", f"data/staged/advantages/{k}", "--out", f"data/staged/checkpoints/{k}"],
        ):
            run = run_command(*command, *sets)
            assert run.code == 0, run.err
        previous = f"data/staged/checkpoints/{k}"

    monkeypatch.chdir(project)
    params = load_params(
        Path("params.yaml"),
        [
            *SETTINGS,
            *("train.iterations=2", "train.keep=last", "train.validation.episodes=1"),
            *("eval.episodes=1", "eval.envs=1", "eval.videos=0", "eval.max_env_steps=24"),
        ],
    )
    train(params, Path(params.policy.base_of(params.task)), out=Path("data/fused"))

    # Cut off within the second iteration: its second group and all that follows are missing.
    shutil.copytree("data/fused", "data/resumed")
    for lost in ("groups/002/001.zarr", "advantages/002", "checkpoints/002", "evals/after-t0", "evals/after-t1"):
        shutil.rmtree(Path("data/resumed") / lost)
    for lost in ("validations/002.json", "ending.json", "validation.csv", "summary.json", "summary.md", "tgrpo.json"):
        (Path("data/resumed") / lost).unlink()
    train(params, Path(params.policy.base_of(params.task)), out=Path("data/resumed"), resume=True)

    staged = Path("data/staged")
    artifacts = [
        path.relative_to(staged) for path in sorted(staged.glob("groups/*/*")) + sorted(staged.glob("[ac]*/*"))
    ]
    assert len(artifacts) == 4 + 2 + 2
    with open("data/fused/history.csv", newline="") as file:
        assert all(float(row["updates"]) > 0 for row in csv.DictReader(file))  # or the bytes would say little
    for artifact in artifacts:
        assert digest_of(staged / artifact) == digest_of(Path("data/fused") / artifact), artifact
        assert digest_of(staged / artifact) == digest_of(Path("data/resumed") / artifact), artifact
    for name in ("history.csv", "validation.csv", "ending.json", "summary.json", "summary.md", "evals/after-t1"):
        assert digest_of(Path("data/fused") / name) == digest_of(Path("data/resumed") / name), name

    # The seed decides: another one samples other actions.
    other = tgrpo_here("rollout", "--out", "data/other", "--seed", 1, *sets)
    assert other.code == 0, other.err
    assert digest_of(project / "data/other/000.zarr") != digest_of(staged / "groups/001/000.zarr")


def test_a_run_is_resumed_only_with_its_own_params(
    tgrpo: Callable[..., Run], tgrpo_here: Callable[..., Run], project: Path
) -> None:
    args = [
        "train",
        "--out",
        "data/run",
        *short("eval.episodes=1", "eval.envs=1", "rollout.envs=2", "rollout.groups=1"),
    ]
    first = tgrpo(*args, "--iterations", 1)
    assert first.code == 0, first.err
    for name in ("curve.png", "history.csv", "summary.json", "evals/before-t0/episodes.json"):
        assert (project / "data" / "run" / name).stat().st_size > 0
    assert tgrpo_here(*args, "--iterations", 1).code == 1
    other = tgrpo_here(*args, "--iterations", 1, "--resume", "--set", "update.lr=0.1")
    assert other.code == 1 and "another params.update.lr" in other.err
    assert tgrpo_here(*args, "--iterations", 1, "--resume").handles == first.handles
