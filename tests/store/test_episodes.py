"""The episodes of an evaluation on disk: what was written is read, and what is not whole is refused."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from stages.errors import ArtifactError
from stages.store.episodes import EPISODES, open_episodes
from stages.types import InitialState
from tests.evaluation_sample import ATTRS, K, S, decisions, write_sample


def test_episodes_are_read_as_they_were_written(tmp_path: Path) -> None:
    states = [InitialState("sampled", 4_000_000_000), InitialState("official", 7)]
    path = write_sample(tmp_path / "e", [True, None, False, True], states=states, repeats=2, temperature=1.0)
    episodes = open_episodes(path)
    assert episodes.attrs.repeats == 2 and episodes.attrs.instruction == ATTRS.instruction and episodes.complete
    assert len(episodes) == 4 and episodes.starts == (*states, *states)
    assert episodes["repeat"][:].tolist() == [0, 0, 1, 1]
    assert episodes["success"][:].tolist() == [True, False, False, True]
    assert episodes["crashed"][:].tolist() == [False, True, False, False]
    assert episodes["length"][:].tolist() == [2, 0, 4, 5]
    assert episodes["steps"][:].tolist() == [K + 1, 0, 3 * K + 1, 4 * K + 1]
    third = decisions(4, seed=2)
    assert episodes["return"][2] == pytest.approx(third["reward"].astype(float).sum())
    assert episodes["milestone_at_best"][2] == third["milestone"][third["reward"].argmax()]
    for name, series in third.items():
        np.testing.assert_array_equal(episodes[name][2, :4], series)
        assert not episodes[name][2, 4:].any()
    expected = [np.full((1, S), float(str(episodes.starts[2]).split("/")[1])), third["sim_state"].reshape(-1, S)[:-1]]
    np.testing.assert_array_equal(episodes.states(2), np.concatenate(expected))


@pytest.mark.parametrize(
    ("break_it", "says"),
    [
        (lambda path: shutil.rmtree(path), "does not exist"),
        (lambda path: shutil.rmtree(path / EPISODES), "has no episodes.zarr: .*`tgrpo eval`"),
        (lambda path: next((path / EPISODES / "reward").glob("c.*")).unlink(), "is not whole"),
        (lambda path: shutil.rmtree(path / EPISODES / "crashed"), "is not whole"),
        (lambda path: _set(path, "schema_version", 0), "schema version 0, this tgrpo reads version 1"),
    ],
)
def test_what_is_not_whole_is_refused(tmp_path: Path, break_it, says: str) -> None:
    path = write_sample(tmp_path / "e", [True, False])
    break_it(path)
    with pytest.raises(ArtifactError, match=says):
        open_episodes(path)


def test_an_evaluation_that_crashes_ended_is_read_on_request_only(tmp_path: Path) -> None:
    path = write_sample(tmp_path / "e", [True, None, None], whole=False)
    with pytest.raises(ArtifactError, match="is incomplete: the simulator crashed in 2 of its first 3 episodes"):
        open_episodes(path)
    assert not open_episodes(path, incomplete=True).complete


def _set(path: Path, key: str, value: object) -> None:
    root = path / EPISODES / "zarr.json"
    record = json.loads(root.read_text())
    record["attributes"]["tgrpo"][key] = value
    root.write_text(json.dumps(record))
