"""Two policies on the same episodes: who is paired with whom, what is counted, and what is refused."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from stages.algo.intervals import paired_difference, wilson
from stages.compare import compare
from stages.errors import ArtifactError, MismatchError, UsageError
from stages.evaluations import resolve
from stages.store.artifacts import digest_of
from stages.store.provenance import Manifest, write_manifest
from stages.types import InitialState
from tests.conftest import Run
from tests.evaluation_sample import ATTRS, write_sample
from tgrpo_cli.compare import lines

Y, N, X = True, False, None  # success, failure, crash


def test_a_pair_by_hand(tmp_path: Path) -> None:
    a = write_sample(tmp_path / "a", [Y, Y, N, N, N, N, N, X, Y])
    b = write_sample(tmp_path / "b", [Y, N, Y, Y, Y, N, Y, Y, X])
    comparison = compare([(a, b)])
    (row,) = comparison.rows
    assert (row.both, row.only_a, row.only_b, row.neither) == (1, 1, 4, 1)
    assert (row.pairs, row.crashed, row.states) == (7, 2, 7)
    assert (row.rate_a, row.rate_b) == (2 / 7, 5 / 7)
    assert (row.low_a, row.high_a) == wilson(2, 7) and (row.low_b, row.high_b) == wilson(5, 7)
    assert row.difference == pytest.approx(3 / 7)
    assert (row.low, row.high) == paired_difference(1, 1, 4, 1)
    assert row.p == row.p_states == 2 * (1 + 5) / 2**5
    assert comparison.tasks == comparison.rows
    assert (row.a, row.b, row.seed) == (a.as_posix(), b.as_posix(), 0)
    assert comparison.mean.tasks == 1 and comparison.mean.difference == row.difference


def test_pairs_are_found_by_state_and_repeat_not_by_order(tmp_path: Path) -> None:
    states = [InitialState("official", index) for index in (4, 9)]
    sampled = {"temperature": 1.0, "repeats": 2}
    a = write_sample(tmp_path / "a", [Y, N, N, N], states=states, **sampled)
    b = write_sample(tmp_path / "b", [Y, Y, Y, Y], states=states[::-1], **sampled)
    (row,) = compare([(a, b)]).rows
    assert (row.both, row.only_b, row.pairs, row.states) == (1, 3, 4, 2)
    c = write_sample(tmp_path / "c", [N, Y, N, N], states=states[::-1], **sampled)
    (same,) = compare([(a, c)]).rows
    assert (same.both, same.neither) == (1, 3)


def test_repeats_of_one_state_count_once_by_state(tmp_path: Path) -> None:
    # State 0: B gains in both repeats; state 1: one gain, one loss; state 2: one gain. Signs +, 0, +: p = 2/4.
    sampled = {"temperature": 1.0, "repeats": 2}
    a = write_sample(tmp_path / "a", [N, N, N, N, Y, Y], **sampled)
    b = write_sample(tmp_path / "b", [Y, Y, Y, Y, N, Y], **sampled)
    (row,) = compare([(a, b)]).rows
    assert (row.only_a, row.only_b, row.states) == (1, 4, 3)
    assert row.p == 2 * (1 + 5) / 2**5 and row.p_states == 0.5


def test_seeds_and_tasks_are_joined_pooled_and_averaged(tmp_path: Path) -> None:
    a = write_sample(tmp_path / "a", [Y, N, N, N])
    b = write_sample(tmp_path / "b", [Y, Y, N, N])
    again = write_sample(tmp_path / "again", [Y, Y, Y, N])
    other_a = write_sample(tmp_path / "oa", [N, N], task="libero_object/1")
    other_b = write_sample(tmp_path / "ob", [N, Y], task="libero_object/1")
    comparison = compare([(a, b), (other_a, other_b), (a, again)])
    assert [(row.task, row.only_b, row.pairs) for row in comparison.rows] == [
        ("libero_object/6", 1, 4),
        ("libero_object/1", 1, 2),
        ("libero_object/6", 2, 4),
    ]
    assert [(row.task, row.only_b, row.pairs, row.states) for row in comparison.tasks] == [
        ("libero_object/6", 3, 8, 4),
        ("libero_object/1", 1, 2, 2),
    ]
    pooled = comparison.pooled
    assert (pooled.both, pooled.only_a, pooled.only_b, pooled.neither, pooled.states) == (2, 0, 4, 4, 6)
    assert pooled.p == 2 / 2**4 and pooled.p_states == 2 / 2**3  # state 1 of the first task gained in both seeds
    assert (pooled.rate_a, pooled.rate_b) == (0.2, 0.6)
    # By task 2/8 and 5/8, 0/2 and 1/2; each task counts the same.
    assert (comparison.mean.rate_a, comparison.mean.rate_b) == (0.125, 0.5625)
    assert comparison.mean.difference == pytest.approx(0.4375)
    assert pooled.a is None and pooled.seed is None
    shown = "\n".join(lines(comparison))
    assert "mean over 2 tasks: 12.5% and 56.2%, B - A +43.8 points" in shown and "2/10 20%" in shown


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"task": "libero_object/1"}, "task is libero_object/6 and libero_object/1"),
        ({"temperature": 0.5}, "temperature is 1.0 and 0.5"),
        ({"seed": 3}, "seed is 0 and 3"),
        ({"max_env_steps": 100}, "max_env_steps is 280 and 100"),
        ({"starts": "validation"}, "starts is official and validation"),
        (
            {"params": {**ATTRS.params, "assets": {"kind": "libero", "digest": "ef" * 32}}},
            r"sim.assets is primitive \(abab",
        ),
        ({"params": {**ATTRS.params, "sim": {"physics": "exact"}}}, "sim.physics is lean and exact"),
        ({"shift": 1e-9}, "official/0 is not the same state in both"),
        ({"states": [InitialState("official", 0), InitialState("official", 5)]}, "official/1 first"),
    ],
)
def test_what_does_not_pair_is_named(tmp_path: Path, changed: dict, says: str) -> None:
    a = write_sample(tmp_path / "a", [Y, N], temperature=1.0)
    b = write_sample(tmp_path / "b", [Y, N], **{"temperature": 1.0, **changed})
    with pytest.raises(MismatchError, match=says) as caught:
        compare([(a, b)])
    assert "evaluate both with" in str(caught.value) and "\n" not in str(caught.value)


def test_the_seed_of_sampling_does_not_matter_to_greedy_policies(tmp_path: Path) -> None:
    a, b = write_sample(tmp_path / "a", [Y, N]), write_sample(tmp_path / "b", [Y, Y], seed=3)
    assert compare([(a, b)]).pooled.only_b == 1


def test_what_cannot_be_pooled_is_named(tmp_path: Path) -> None:
    a, b = write_sample(tmp_path / "a", [Y, N]), write_sample(tmp_path / "b", [Y, Y])
    hot = [write_sample(tmp_path / f"hot{n}", [Y, N], temperature=1.0) for n in range(2)]
    with pytest.raises(MismatchError, match=r"cannot be pooled: temperature is 0\.0 and 1\.0"):
        compare([(a, b), (hot[0], hot[1])])
    with pytest.raises(MismatchError, match="given twice"):
        compare([(a, b), (a, b)])
    crashed = write_sample(tmp_path / "crashed", [X, X])
    with pytest.raises(MismatchError, match="no pair of episodes"):
        compare([(a, crashed)])


def checkpoint(path: Path) -> str:
    """A folder that passes for a checkpoint; returns its digest."""
    path.mkdir(parents=True)
    write_manifest(path, Manifest(kind="checkpoint", params={"name": path.name}, seed=0))
    return digest_of(path)


def test_checkpoints_stand_for_their_newest_evaluations_that_pair(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    sft, tgrpo = Path("data/checkpoints/sft"), Path("data/runs/0001/checkpoints/014")
    of_sft, of_tgrpo = checkpoint(sft), checkpoint(tgrpo)
    written = {
        "data/evals/0001": ([N, N], of_sft, {}),
        "data/evals/0002": ([N, Y], of_sft, {}),
        "data/evals/0003": ([N, Y, Y], of_sft, {}),  # of other states
        "data/evals/0004": ([N, N], of_sft, {"temperature": 1.0}),
        "data/runs/0001/evals/after-t0": ([Y, Y], of_tgrpo, {}),
        "data/runs/0001/evals/after-t1": ([Y, N], of_tgrpo, {"temperature": 1.0}),
        "data/evals/0005": ([Y, Y], "00" * 32, {}),
    }
    for second, (path, (outcomes, digest, attrs)) in enumerate(written.items()):
        write_sample(Path(path), outcomes, checkpoint=digest, **attrs)
        os.utime(Path(path) / "tgrpo.json", (1e9 + second, 1e9 + second))
    found = resolve([sft, tgrpo])
    assert {t: [(a.as_posix(), b.as_posix()) for a, b in pairs] for t, pairs in found.items()} == {
        0.0: [("data/evals/0002", "data/runs/0001/evals/after-t0")],
        1.0: [("data/evals/0004", "data/runs/0001/evals/after-t1")],
    }
    # A checkpoint and an evaluation, and a run's before and after.
    assert resolve([sft, Path("data/evals/0005")]) == {0.0: [(Path("data/evals/0002"), Path("data/evals/0005"))]}
    write_sample(Path("data/runs/0001/evals/before-t0"), [N, N], checkpoint=of_sft)
    write_sample(Path("data/runs/0001/evals/before-t1"), [N, N], checkpoint=of_sft, temperature=1.0)
    write_manifest(Path("data/runs/0001"), Manifest(kind="train", params={}, seed=0))
    run = Path("data/runs/0001/evals")
    assert resolve([run.parent]) == {
        0.0: [(run / "before-t0", run / "after-t0")],
        1.0: [(run / "before-t1", run / "after-t1")],
    }

    checkpoint(Path("data/checkpoints/new"))
    with pytest.raises(ArtifactError, match=r"new has no evaluation .*`tgrpo eval data/checkpoints/new`"):
        resolve([sft, Path("data/checkpoints/new")])
    lonely = checkpoint(Path("data/checkpoints/lonely"))
    for name, count in (("0006", 5), ("0007", 6)):
        write_sample(Path("data/evals") / name, [Y] * count, checkpoint=lonely)
    with pytest.raises(MismatchError, match=r"none of the 6 evaluations of .*sft and the 2 of .*lonely"):
        resolve([sft, Path("data/checkpoints/lonely")])


def test_what_is_no_pair_of_evaluations_is_refused(tmp_path: Path) -> None:
    a = write_sample(tmp_path / "a", [Y, N])
    write_manifest(_folder(tmp_path / "reward"), Manifest(kind="reward", params={}, seed=0))
    (_folder(tmp_path / "run") / "run.json").write_text("{}")
    for named, error, says in (
        ([a], UsageError, "nothing to be compared with"),
        ([], UsageError, "needs two evaluations"),
        ([a, tmp_path / "reward"], UsageError, "of kind 'reward'"),
        ([a, tmp_path / "run"], ArtifactError, "has not ended; go on with it by `tgrpo train --resume"),
        ([a, _folder(tmp_path / "empty")], ArtifactError, "neither an evaluation"),
        ([a, tmp_path / "nowhere"], ArtifactError, "does not exist"),
    ):
        with pytest.raises(error, match=says):
            resolve(named)


def test_the_command_line(tgrpo: Callable[..., Run], project: Path) -> None:
    a = write_sample(project / "a", [Y, N, N, N])
    b = write_sample(project / "b", [Y, Y, Y, N])
    other = write_sample(project / "other", [N, Y], task="libero_object/1")
    done = tgrpo("compare", a, b, other, other, "--json", "c.json")
    assert done.code == 0, done.err
    assert [(line["of"], line.get("pairs"), line.get("p")) for line in done.handles] == [
        ("pair", 4, 0.5),
        ("pair", 2, 1.0),
        ("task", 4, 0.5),
        ("task", 2, 1.0),
        ("all", 6, 0.5),
        ("mean over tasks", None, None),
    ]
    (written,) = json.loads((project / "c.json").read_text())
    assert written["pooled"]["only_b"] == 2 and written["mean"]["difference"] == 0.25
    bad = tgrpo("compare", a, other)
    assert bad.code == 1 and len(bad.err.splitlines()) == 1 and "task is libero_object/6 and" in bad.err


def _folder(path: Path) -> Path:
    path.mkdir(parents=True)
    return path
