"""Worker processes: equal to one environment here, and gone when they should be."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from stages.errors import SimulatorError, TaskError
from stages.sim.assets import resolve_assets
from stages.sim.env import LiberoEnv
from stages.sim.tasks import official_states
from stages.sim.vector import VectorEnv
from stages.types import InitialState, VectorObservation
from tests.sim.sample import SIM, TASK

SIM = SIM.model_copy(update={"action_repeat": 3})
STARTS = [InitialState("official", 4), InitialState("sampled", 11)]


@pytest.fixture(scope="module")
def vector() -> Iterator[VectorEnv]:
    with VectorEnv(TASK, 2, SIM) as vector:
        yield vector


def _alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False


def _wait_until_gone(pids: list[int], seconds: float = 10.0) -> bool:
    deadline = time.monotonic() + seconds
    while any(map(_alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not any(map(_alive, pids))


def _pids(vector: VectorEnv) -> list[int]:
    return [process.pid for process in vector._processes if process.pid is not None]


def test_equals_one_environment_bit_by_bit(vector: VectorEnv) -> None:
    actions = np.random.default_rng(1).uniform(-1, 1, (6, 2, 7))
    seen = [vector.reset(STARTS), *(vector.step(action) for action in actions)]
    assert (vector.num_envs, vector.action_repeat, vector.state_size) == (2, 3, 110)
    env = LiberoEnv(TASK, SIM, resolve_assets(SIM))
    assert vector.object_names == env.object_names
    for n, start in enumerate(STARTS):
        env.reset(start)
        for t, observation in enumerate(seen):
            states = [env.state()] * 3
            if t > 0:
                states = []
                for _ in range(3):
                    env.step(actions[t - 1, n])
                    states.append(env.state())
            np.testing.assert_array_equal(observation.sim_state[n], states)
            np.testing.assert_array_equal(observation.image[n], env.render())
            np.testing.assert_array_equal(observation.proprio[n], env.proprio())
            for name, values in vars(env.scene()).items():
                np.testing.assert_array_equal(getattr(observation.scene, name)[n], values)
            assert observation.env_steps[n] == (0 if t == 0 else 3)
    env.close()


def test_others_are_left_as_they_are(vector: VectorEnv) -> None:
    before = vector.reset(STARTS)
    after = vector.step(np.full((2, 7), 0.5), active=np.array([False, True]))
    kept = before.sim_state.copy(), before.image.copy()
    _equal(before, after, 0)
    assert not np.array_equal(before.sim_state[1], after.sim_state[1])
    again = vector.reset([InitialState("official", 4)], indices=[1])
    _equal(before, again, 0)
    np.testing.assert_array_equal(again.sim_state[0], again.sim_state[1])
    np.testing.assert_array_equal(before.sim_state, kept[0])  # what was returned is never written again
    np.testing.assert_array_equal(before.image, kept[1])


def _equal(a: VectorObservation, b: VectorObservation, n: int) -> None:
    for name in ("image", "proprio", "sim_state", "env_steps"):
        np.testing.assert_array_equal(getattr(a, name)[n], getattr(b, name)[n])
    np.testing.assert_array_equal(a.scene.object_pos[n], b.scene.object_pos[n])


def test_a_decision_ends_early_on_success(vector: VectorEnv, monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker's loop on LIBERO's environment, with the butter put above the basket's bottom."""
    from stages.sim.worker import _hold

    env = LiberoEnv(TASK, SIM, resolve_assets(SIM))
    env.reset(STARTS[0])
    state = env.state()
    butter, basket = (1 + 9 + 7 * env.object_names.index(name) for name in ("butter_1", "basket_1"))
    state[butter : butter + 3] = state[basket : basket + 3]
    env.reset(state)
    states = _hold(env, np.array([0, 0, 0, 0, 0, 0, -1.0]), 3)
    assert len(states) == 1
    env.close()


def test_wrong_use(vector: VectorEnv) -> None:
    with pytest.raises(ValueError, match="expected one for each"):
        vector.reset(STARTS[:1])
    with pytest.raises(ValueError, match="expected one for each"):
        vector.reset(STARTS, indices=[0, 0])
    with pytest.raises(ValueError, match=r"expected actions of shape \(2, 7\)"):
        vector.step(np.zeros((3, 7)))


def test_a_killed_worker_closes_all_and_says_who() -> None:
    with VectorEnv(TASK, 2, SIM) as vector:
        with pytest.raises(ValueError, match="before its first reset"):
            vector.step(np.zeros((2, 7)))
        vector.reset(STARTS)
        pids = _pids(vector)
        os.kill(pids[1], signal.SIGKILL)
        with pytest.raises(SimulatorError, match=r"environment 1 of libero_object/6 died \(killed by SIGKILL\)"):
            vector.step(np.zeros((2, 7)))
        assert _wait_until_gone(pids)
        with pytest.raises(SimulatorError, match="are closed"):
            vector.reset(STARTS)


def test_a_worker_that_raises_closes_all_and_says_why() -> None:
    with VectorEnv(TASK, 1, SIM) as vector:
        pids = _pids(vector)
        count = len(official_states(TASK))
        with pytest.raises(TaskError, match=f"environment 0 of libero_object/6: .*official/{count}"):
            vector.reset([InitialState("official", count)])
        assert _wait_until_gone(pids)


def test_a_silent_worker_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    with VectorEnv(TASK, 1, SIM) as vector:
        vector.reset(STARTS[:1])
        (pid,) = _pids(vector)
        os.kill(pid, signal.SIGSTOP)
        vector._step_timeout = 0.5
        with pytest.raises(SimulatorError, match="environment 0 of libero_object/6 did not answer in time"):
            vector.step(np.zeros((1, 7)))
        assert _wait_until_gone([pid])


PARENT = """
import time
if __name__ == "__main__":
    import tests.sim.test_vector as t
    vector = t.VectorEnv(t.TASK, 1, t.SIM)
    vector.reset(t.STARTS[:1])
    print(*t._pids(vector), flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_workers_go_with_their_parent_and_stdout_is_clean(tmp_path: Path, how: signal.Signals) -> None:
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    shared = set(Path("/dev/shm").glob("*")) if Path("/dev/shm").is_dir() else set()
    parent = subprocess.Popen(
        [sys.executable, str(script)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        start_new_session=True,
    )
    assert parent.stdout is not None
    assert parent.stderr is not None
    pids = [int(pid) for pid in parent.stdout.readline().split()]
    assert len(pids) == 1
    if how == signal.SIGINT:
        os.killpg(parent.pid, how)  # as a terminal does: to the whole group
    else:
        parent.send_signal(how)
    assert parent.wait(20) != 0
    assert _wait_until_gone(pids)
    assert parent.stdout.read() == ""
    assert "Process tgrpo-env" not in parent.stderr.read()
    new = set(Path("/dev/shm").glob("*")) - shared if shared else set()
    assert not [path for path in new if path.name.startswith(("psm_", "pym-"))]
