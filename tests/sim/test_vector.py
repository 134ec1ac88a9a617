"""Worker processes: equal to one environment here, the same after any loss, and gone when they should be."""

import contextlib
import gc
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from stages.errors import SimulatorError, TaskError
from stages.sim import processes
from stages.sim.assets import resolve_assets
from stages.sim.env import LiberoEnv
from stages.sim.records import Layout, Record, new_memory
from stages.sim.tasks import official_states
from stages.sim.vector import VectorEnv
from stages.sim.worker import _hold
from stages.types import InitialState, VectorObservation
from tests.sim.sample import SIM, TASK

SIM = SIM.model_copy(update={"action_repeat": 3})
STARTS = [InitialState("official", 4), InitialState("sampled", 11)]
ACTIONS = np.random.default_rng(1).uniform(-1, 1, (6, 2, 7))


@pytest.fixture(scope="module")
def shared() -> Iterator[VectorEnv]:
    with VectorEnv(TASK, 2, SIM) as vector:
        yield vector


@pytest.fixture
def vector(shared: VectorEnv, monkeypatch: pytest.MonkeyPatch) -> VectorEnv:
    """The module's environments; their time-out and limit may be changed."""
    for name in ("_timeout", "_max_restarts"):
        monkeypatch.setattr(shared, name, getattr(shared, name))
    return shared


@pytest.fixture(scope="module")
def undisturbed(shared: VectorEnv) -> list[VectorObservation]:
    return _episode(shared)


def _episode(vector: VectorEnv) -> list[VectorObservation]:
    return [vector.reset(STARTS), *(vector.step(actions) for actions in ACTIONS)]


def _arrays(observation: VectorObservation) -> dict[str, NDArray[Any]]:
    return {
        **{name: values for name, values in vars(observation).items() if name != "scene"},
        **vars(observation.scene),
    }


def _equal(a: VectorObservation, b: VectorObservation, n: int, m: int | None = None) -> None:
    """Environment n of a shows what environment m (None: n) of b shows, to the last bit."""
    for name, values in _arrays(a).items():
        np.testing.assert_array_equal(values[n], _arrays(b)[name][n if m is None else m], err_msg=name)


def _same(seen: list[VectorObservation], expected: list[VectorObservation]) -> None:
    assert len(seen) == len(expected)
    for a, b in zip(seen, expected, strict=True):
        for n in range(2):
            _equal(a, b, n)


def _worker(vector: VectorEnv, index: int) -> int:
    worker = vector._slots[index].worker
    assert worker is not None
    return worker.pid


def _pids(vector: VectorEnv) -> list[int]:
    """The nursery's and the workers' process ids."""
    assert vector._nursery.pid is not None
    return [vector._nursery.pid, *(_worker(vector, index) for index in range(vector.num_envs))]


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


def test_equals_one_environment_bit_by_bit(vector: VectorEnv, undisturbed: list[VectorObservation]) -> None:
    assert (vector.num_envs, vector.action_repeat, vector.state_size) == (2, 3, 110)
    env = LiberoEnv(TASK, SIM, resolve_assets(SIM))
    assert vector.names == env.names
    for n, start in enumerate(STARTS):
        env.reset(start)
        for t, observation in enumerate(undisturbed):
            states = [env.state()] * 3
            if t > 0:
                states = []
                for _ in range(3):
                    env.step(ACTIONS[t - 1, n])
                    states.append(env.state())
            np.testing.assert_array_equal(observation.sim_state[n], states)
            np.testing.assert_array_equal(observation.image[n], env.render())
            np.testing.assert_array_equal(observation.proprio[n], env.proprio())
            for name, values in vars(env.scene()).items():
                np.testing.assert_array_equal(getattr(observation.scene, name)[n], values)
            assert observation.env_steps[n] == (0 if t == 0 else 3)
    env.close()


@pytest.mark.parametrize("start", STARTS, ids=str)
def test_forks_of_one_start_are_equal_and_equal_to_a_reset_of_their_own(vector: VectorEnv, start: InitialState) -> None:
    n = STARTS.index(start)
    seen = [vector.reset([start, start]), *(vector.step(np.stack([a[n], a[n]])) for a in ACTIONS)]
    alone = [vector.reset([start], indices=[1])]
    alone += [vector.step(actions[[n, n]], active=np.array([False, True])) for actions in ACTIONS]
    for forks, reset in zip(seen, alone, strict=True):
        _equal(forks, forks, 0, 1)
        _equal(forks, reset, 1)


def test_others_are_left_as_they_are(vector: VectorEnv) -> None:
    before = vector.reset(STARTS)
    after = vector.step(np.full((2, 7), 0.5), active=np.array([False, True]))
    kept = before.sim_state.copy(), before.image.copy()
    _equal(before, after, 0)
    assert not np.array_equal(before.sim_state[1], after.sim_state[1])
    again = vector.reset([InitialState("official", 4)], indices=[1])
    _equal(before, again, 0)
    _equal(again, again, 0, 1)
    np.testing.assert_array_equal(before.sim_state, kept[0])  # what was returned is never written again
    np.testing.assert_array_equal(before.image, kept[1])


def test_steps_of_different_environments_may_overlap(
    vector: VectorEnv, undisturbed: list[VectorObservation], caplog: pytest.LogCaptureFixture
) -> None:
    """Started one after the other and waited for in any order, also when a worker dies on the way."""
    vector.reset(STARTS)
    alone = [np.array([True, False]), np.array([False, True])]
    for step, actions in enumerate(ACTIONS):
        waits = [vector.start_step(actions, active) for active in alone]
        with pytest.raises(ValueError, match=rf"environment 1 of {TASK.id} is being stepped"):
            vector.step(actions, alone[1])
        if step == 2:
            os.kill(_worker(vector, 0), signal.SIGKILL)
        for n in (1, 0) if step % 2 else (0, 1):
            _equal(waits[n](), undisturbed[step + 1], n)
    assert "environment 0" in caplog.text
    wait = vector.start_step(ACTIONS[0], alone[0])
    again = vector.reset(STARTS[1:], indices=[1])  # the other one meanwhile
    _equal(again, undisturbed[0], 1)
    wait()


def test_a_decision_ends_early_on_success() -> None:
    """The worker's loop on LIBERO's environment, with the butter put above the basket's bottom."""
    env = LiberoEnv(TASK, SIM, resolve_assets(SIM))
    env.reset(STARTS[0])
    state = env.state()
    butter, basket = (1 + 9 + 7 * env.object_names.index(name) for name in ("butter_1", "basket_1"))
    state[butter : butter + 3] = state[basket : basket + 3]
    env.reset(state)
    with new_memory() as memory:
        record = Record(Layout(48, 3, len(env.object_names), 0, 1, 1, env.state_size, env.snapshot_size), memory)
    record["action"] = [0, 0, 0, 0, 0, 0, -1]
    _hold(record, env)
    assert record["env_steps"] == 1
    np.testing.assert_array_equal(record["sim_state"][0], env.state())
    env.close()


def test_wrong_use_changes_nothing(vector: VectorEnv) -> None:
    before = vector.reset(STARTS)
    pids = _pids(vector)
    for starts, indices in ((STARTS[:1], None), (STARTS, [0, 0]), (STARTS, [0, 2]), (STARTS[:1], [-1])):
        with pytest.raises(ValueError, match="expected one for each"):
            vector.reset(starts, indices)
    with pytest.raises(SimulatorError, match=r"2 environments of libero_object/6 .* \(3, 7\); expected \(2, 7\)"):
        vector.step(np.zeros((3, 7)))
    with pytest.raises(ValueError, match=r"active of shape \(2,\), found \(3,\)"):
        vector.step(np.zeros((2, 7)), np.ones(3, np.bool_))
    broken = np.zeros((2, 7))
    broken[1, 3] = np.nan
    with pytest.raises(SimulatorError, match=r"environment 1 of .* nan.*; expected 7 finite numbers; .*update\.lr"):
        vector.step(broken)
    after = vector.step(broken, np.array([True, False]))  # rows of inactive environments are not read
    _equal(before, after, 1)
    assert _pids(vector) == pids


def _lose(vector: VectorEnv, how: str) -> None:
    pid = vector._nursery.pid if how == "nursery killed" else _worker(vector, 1)
    assert pid is not None
    os.kill(pid, signal.SIGSTOP if how == "worker stopped" else signal.SIGKILL)


@pytest.mark.parametrize(
    ("how", "losses", "warning"),
    [
        (
            "worker killed",
            1,
            r"environment 1 of libero_object/6 died \(killed by SIGKILL\) after 3 decisions; .*loss 1, at most 3",
        ),
        ("worker stopped", 1, r"environment 1 of libero_object/6 was silent for 2 s after 3 decisions"),
        ("nursery killed", 2, r"environment . of libero_object/6 died \(the process it was forked from is gone\)"),
    ],
)
def test_a_loss_changes_nothing(
    vector: VectorEnv,
    undisturbed: list[VectorObservation],
    caplog: pytest.LogCaptureFixture,
    how: str,
    losses: int,
    warning: str,
) -> None:
    pids, before, begun = _pids(vector), vector.restarts, time.monotonic()
    if how == "worker stopped":
        vector._timeout = 2.0
    seen = [vector.reset(STARTS)]
    for t, actions in enumerate(ACTIONS):
        if t == 3:
            _lose(vector, how)
        seen.append(vector.step(actions))
    took = time.monotonic() - begun
    _same(seen, undisturbed)
    assert vector.restarts - before == losses
    assert len(caplog.records) == losses
    caplog.set_level(logging.WARNING)
    for record in caplog.records:
        assert re.search(warning, record.getMessage())
    gone = pids if how == "nursery killed" else pids[2:]
    assert _wait_until_gone(gone)
    assert took < 20, "a death is noticed at once, not by time-out"


def test_a_loss_while_resetting(vector: VectorEnv, undisturbed: list[VectorObservation]) -> None:
    vector.reset(STARTS[::-1])
    _lose(vector, "worker killed")
    _same(_episode(vector), undisturbed)


def test_losses_at_any_moment(vector: VectorEnv, undisturbed: list[VectorObservation]) -> None:
    """Someone kills workers all the time, also such as are just catching up."""
    vector._max_restarts = 1000
    before, over = vector.restarts, threading.Event()

    def kill() -> None:
        draw = np.random.default_rng(0)
        while not over.wait(draw.uniform(0.05, 0.25)):
            worker = vector._slots[int(draw.integers(2))].worker
            if worker is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(worker.pid, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        for _ in range(3):
            _same(_episode(vector), undisturbed)
    finally:
        over.set()
        killer.join()
        vector.reset(STARTS)  # finds one that was killed at last
    assert vector.restarts > before


def test_a_worker_that_moves_on_is_not_silent() -> None:
    """The time-out counts from the last environment step that a worker has ended, however long a decision is held."""
    with VectorEnv(TASK, 1, SIM.model_copy(update={"action_repeat": 800})) as vector:
        vector.reset(STARTS[:1])
        vector._timeout = 0.5
        begun = time.monotonic()
        assert vector.step(np.zeros((1, 7))).env_steps == 800
        assert time.monotonic() - begun > vector._timeout
        assert vector.restarts == 0


def test_too_many_losses_end_it_and_say_why() -> None:
    with VectorEnv(TASK, 2, SIM.model_copy(update={"max_restarts": 1})) as vector:
        with pytest.raises(ValueError, match="environment 0 of libero_object/6 was stepped before its first reset"):
            vector.step(np.zeros((2, 7)))
        for _ in range(2):  # each episode may have its loss
            vector.reset(STARTS)
            _lose(vector, "worker killed")
            vector.step(np.zeros((2, 7)))
        assert vector.restarts == 2
        _lose(vector, "worker killed")
        pids = _pids(vector)
        expected = (
            r"^environment 1 of libero_object/6 died \(killed by SIGKILL\) after 1 decision, and was lost 2 times in"
            r" this episode, with sim\.max_restarts=1; .*try fewer envs$"
        )
        with pytest.raises(SimulatorError, match=expected) as caught:
            vector.step(np.zeros((2, 7)))
        assert caught.value.environment == 1
        assert _wait_until_gone(pids)
        with pytest.raises(SimulatorError, match="are closed"):
            vector.reset(STARTS)


def test_restarted_environments_are_as_new(undisturbed: list[VectorObservation]) -> None:
    with VectorEnv(TASK, 2, SIM.model_copy(update={"max_restarts": 0})) as vector:
        vector.reset(STARTS[::-1])
        before = _pids(vector)
        _lose(vector, "worker killed")
        with pytest.raises(SimulatorError, match="environment 1"):
            vector.step(np.zeros((2, 7)))
        vector.restart()
        with pytest.raises(ValueError, match="before its first reset"):
            vector.step(np.zeros((2, 7)))
        _same(_episode(vector), undisturbed)
        assert not any(map(_alive, before))


def test_another_outcome_of_the_same_actions_is_refused() -> None:
    with VectorEnv(TASK, 2, SIM) as vector:
        vector.reset(STARTS)
        vector.step(ACTIONS[0])
        vector._slots[1].actions[0][0] += 1e-9
        _lose(vector, "worker killed")
        with pytest.raises(SimulatorError, match=r"environment 1 .* another state when its 1 decisions .*by up to"):
            vector.step(ACTIONS[1])


def test_a_worker_that_raises_closes_all_and_says_why() -> None:
    with VectorEnv(TASK, 1, SIM) as vector:
        pids = _pids(vector)
        count = len(official_states(TASK))
        with pytest.raises(TaskError, match=f"environment 0 of libero_object/6: .*official/{count}"):
            vector.reset([InitialState("official", count)])
        assert _wait_until_gone(pids)


def test_a_scene_that_cannot_be_built_is_told_as_by_one_environment(tmp_path: Path) -> None:
    assets = resolve_assets(SIM)
    (tmp_path / "scenes").mkdir()
    with pytest.raises(SimulatorError, match=r"cannot be built.*--set sim\.assets=primitive"):
        VectorEnv(TASK, 2, SIM, type(assets)("libero", tmp_path, "0"))


def test_more_than_memory_holds() -> None:
    with pytest.raises(
        SimulatorError, match=r"100000 environments of .* need \d+ MiB each, .* \d+ fit; use fewer envs"
    ):
        VectorEnv(TASK, 100_000, SIM)


def test_a_renderer_with_threads_is_not_forked(
    undisturbed: list[VectorObservation], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mesa's shader cache has one, so here each worker makes its own renderer, as on a GPU."""
    monkeypatch.setattr(processes, "DRAWING_ENVIRONMENT", {"MESA_SHADER_CACHE_DISABLE": "false"})
    with VectorEnv(TASK, 2, SIM) as vector:
        assert not vector._nursery._order.draw
        assert len(list(Path(f"/proc/{vector._nursery.pid}/task").iterdir())) == 1
        _same(_episode(vector), undisturbed)


@pytest.mark.parametrize("stopped", ["worker", "worker and nursery"])
def test_nothing_is_left_even_of_what_hangs(stopped: str) -> None:
    shared = set(Path("/dev/shm").glob("*"))
    vector = VectorEnv(TASK, 2, SIM)
    pids = _pids(vector)
    assert all(map(_alive, pids))
    os.kill(pids[1], signal.SIGSTOP)
    if "nursery" in stopped:
        os.kill(pids[0], signal.SIGSTOP)
    del vector  # closes it
    gc.collect()
    assert _wait_until_gone(pids, 0.5)
    assert set(Path("/dev/shm").glob("*")) <= shared


def test_a_fork_of_the_owner_leaves_them_alone(vector: VectorEnv) -> None:
    vector.reset(STARTS)
    begun = time.monotonic()
    pid = os.fork()
    if pid == 0:
        vector._shut()
        os._exit(0)
    os.waitpid(pid, 0)
    assert time.monotonic() - begun < 1, "it waited for them, and took answers that belong to the owner"
    assert all(map(_alive, _pids(vector)))
    vector.reset(STARTS)


PARENT = """
import signal
import time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job, such as a CI's, ignores it
import tests.sim.test_vector as t
vector = t.VectorEnv(t.TASK, 2, t.SIM)
vector.reset(t.STARTS)
print(*t._pids(vector), flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_all_go_with_their_parent_and_stdout_is_clean(tmp_path: Path, how: signal.Signals) -> None:
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    shared = set(Path("/dev/shm").glob("*"))
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
    assert len(pids) == 3
    os.kill(pids[1], signal.SIGSTOP)  # one that cannot notice anything
    if how == signal.SIGINT:
        os.killpg(parent.pid, how)  # as a terminal does: to the whole group
    else:
        parent.send_signal(how)
    assert parent.wait(20) != 0
    assert _wait_until_gone(pids)
    assert parent.stdout.read() == ""
    complaint = parent.stderr.read()
    assert complaint.count("Traceback") == complaint.count("KeyboardInterrupt") == (how == signal.SIGINT), complaint
    assert set(Path("/dev/shm").glob("*")) <= shared


@pytest.mark.slow
def test_sixteen_environments_on_few_cores(undisturbed: list[VectorObservation]) -> None:
    with VectorEnv(TASK, 16, SIM) as vector:
        seen = [vector.reset(STARTS * 8), *(vector.step(np.tile(actions, (8, 1))) for actions in ACTIONS)]
        for observation, expected in zip(seen, undisturbed, strict=True):
            for n in range(16):
                _equal(observation, expected, n, n % 2)
        os.kill(_pids(vector)[0], signal.SIGKILL)
        again = [vector.reset(STARTS * 8), *(vector.step(np.tile(actions, (8, 1))) for actions in ACTIONS)]
        for observation, expected in zip(again, undisturbed, strict=True):
            for n in range(16):
                _equal(observation, expected, n, n % 2)
        assert vector.restarts == 16
