"""The run as a whole: it ends early, keeps its best checkpoint, survives a broken policy, and can be gone on with."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import stages.train
from stages.errors import TgrpoError
from stages.evaluate import EvalSummary
from stages.history import read_history
from stages.params import Params, load_params
from stages.store.artifacts import digest_of
from stages.store.handles import Handle
from stages.store.provenance import read_manifest, resolve_reference
from stages.telemetry import read_telemetry
from stages.train import train
from tests.conftest import SHORT
from tests.test_trackers import scalars

TINY = (
    "policy.threads=1",
    "rollout.envs=2",
    "rollout.groups=1",
    "eval.episodes=1",
    "eval.envs=1",
    "train.eval_temperatures=[0.0]",
)


def tiny(project: Path, *extra: str) -> Params:
    return load_params(project / "params.yaml", [*SHORT, *TINY, "advantage.min_return_std=0", *extra])


def validated(successes: int) -> EvalSummary:
    """What a validation of four episodes says; the real one would need hundreds of decisions to say anything."""
    return EvalSummary(
        episodes=4,
        successes=successes,
        crashes=0,
        success_rate=successes / 4,
        confidence=0.95,
        low=0.0,
        high=1.0,
        mean_return=10.0,
        mean_steps_to_success=None,
        temperature=0.0,
        repeats=1,
        starts="validation",
    )


def outcomes(monkeypatch: pytest.MonkeyPatch, *successes: int) -> None:
    """Makes validations say these, one after the other."""
    says = iter(successes)
    monkeypatch.setattr(stages.train, "validate", lambda *_: validated(next(says)))


def run(params: Params, out: str, resume: bool = False) -> Handle:
    return train(params, Path(params.policy.base_of(params.task)), out=Path(out), resume=resume)


def bytes_of(folder: Path) -> dict[Path, str]:
    return {path: digest_of(path) for path in folder.rglob("*") if path.is_file()}


def history(out: str) -> list[dict[str, float]]:
    return read_history(Path(out))


def summary(out: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((Path(out) / "summary.json").read_text())
    return found


@pytest.mark.slow
def test_a_run_that_is_stuck_ends_keeps_its_best_and_stays_ended(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project)
    params = tiny(
        project, "train.iterations=9", "train.validation.every=1", "train.guard.patience=1", "train.guard.idle=0"
    )
    outcomes(monkeypatch, 1, 3, 2)
    handle = run(params, "data/run")
    assert (handle.extra["ending"], handle.extra["kept"], handle.extra["iterations"]) == ("stuck", 1, 2)
    assert summary("data/run")["ending"] == {
        "kind": "stuck",
        "iteration": 2,
        "why": "1 validations without more than 3/4 of iteration 1",
    }
    assert not Path("data/run/checkpoints/003").exists()
    kept = Path("data/run/checkpoints/001")
    manifest = read_manifest(Path("data/run"), "train")
    assert resolve_reference(manifest.inputs["end"], Path("data/run")) == kept
    evaluated = read_manifest(Path("data/run/evals/after-t0"), "eval").inputs["checkpoint"]
    assert evaluated["digest"] == digest_of(kept)
    report = Path("data/run/summary.md").read_text()
    assert "stuck after 2 of 9 iterations" in report and "1/4 after 0, 3/4 after 1, 2/4 after 2" in report
    assert "0/1 = 0% (95% Wilson interval 0% to 79%)" in report and "| 0, 0 | 1 | no |" in report

    # Files of what the seed decides and of what was measured have a line for each iteration, and TensorBoard has both.
    assert [row["iteration"] for row in history("data/run")] == [1, 2]
    lines = read_telemetry(Path("data/run/telemetry.csv"))
    assert [line["iteration"] for line in lines] == [0, 1, 2]
    assert all(line["env_steps_per_s"] > 0 and line["seconds_sample"] > 0 for line in lines[1:])
    assert lines[0]["seconds_evaluate"] > 0 and lines[2]["seconds_evaluate"] > 0
    shown = {(tag, step): value for tag, step, value in scalars(Path("data/run/tensorboard"))}
    assert [shown["validation/success_rate", k] for k in range(3)] == [0.25, 0.75, 0.5]
    assert shown["sampled/entropy", 2] == pytest.approx(history("data/run")[1]["entropy"])
    assert shown["time/env_steps", 1] == lines[1]["env_steps"]

    # Gone on with, an ended run only says again what it found.
    before = bytes_of(Path("data/run"))
    assert run(params, "data/run", resume=True) == handle
    assert bytes_of(Path("data/run")) == before

    # Cut off before the second iteration was judged, it comes to the same end.
    shutil.copytree("data/run", "data/cut")
    for name in ("ending.json", "validations/002.json", "summary.json", "summary.md", "tgrpo.json", "validation.csv"):
        (Path("data/cut") / name).unlink()
    shutil.rmtree("data/cut/evals/after-t0")
    outcomes(monkeypatch, 2)
    run(params, "data/cut", resume=True)
    for name in ("ending.json", "summary.json", "summary.md", "history.csv", "validation.csv", "checkpoints"):
        assert digest_of(Path("data/cut") / name) == digest_of(Path("data/run") / name), name
    again = list(scalars(Path("data/cut/tensorboard")))
    assert len(again) == len({(tag, step) for tag, step, _ in again}) and {step for _, step, _ in again} == {0, 1, 2}
    assert [line["iteration"] for line in read_telemetry(Path("data/cut/telemetry.csv"))] == [0, 1, 2]


def test_a_policy_that_breaks_ends_the_run_with_the_last_good_checkpoint(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project)
    params = tiny(project, "train.iterations=3", "update.lr=1e30", "update.minibatch=4", "train.validation.every=0")
    handle = run(params, "data/run")
    # An iteration whose returns are equal learns nothing and leaves a whole checkpoint; the first that learns breaks.
    good = handle.extra["iterations"]
    assert good < 3 and all(row["updates"] == 0 for row in history("data/run"))
    assert (handle.extra["ending"], handle.extra["kept"]) == ("diverged", good)
    assert summary("data/run")["ending"]["iteration"] == good + 1
    assert not Path(f"data/run/checkpoints/{good + 1:03d}").exists()
    assert f"diverged after {good + 1} of 3 iterations" in Path("data/run/summary.md").read_text()
    before = bytes_of(Path("data/run"))
    run(params, "data/run", resume=True)
    assert bytes_of(Path("data/run")) == before


def test_a_run_that_is_solved_from_the_start_trains_nothing(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project)
    outcomes(monkeypatch, 4)
    handle = run(tiny(project), "data/run")
    assert (handle.extra["ending"], handle.extra["kept"], handle.extra["iterations"]) == ("solved", 0, 0)
    assert not Path("data/run/groups").exists()


def test_a_project_of_a_missing_package_is_refused_before_anything_runs(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.metadata.version", _nothing_installed)
    with pytest.raises(TgrpoError, match="pip install wandb"):
        run(tiny(project, "train.wandb=vla"), str(project / "data" / "run"))
    assert not (project / "data" / "run").exists()


def _nothing_installed(name: str) -> str:
    import importlib.metadata

    raise importlib.metadata.PackageNotFoundError(name)
