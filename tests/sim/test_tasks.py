import pickle
import sys
import zipfile
from dataclasses import replace
from subprocess import run

import numpy as np
import pytest

from stages.errors import SimulatorError, TaskError
from stages.sim.tasks import SUITES, list_tasks, load_task, official_states, task_object_names


def test_suites_have_liberos_sizes_and_limits() -> None:
    sizes = {suite: (len(list_tasks(suite)), list_tasks(suite)[0].max_env_steps) for suite in SUITES}
    assert sizes == {
        "libero_spatial": (10, 220),
        "libero_object": (10, 280),
        "libero_goal": (10, 300),
        "libero_10": (10, 520),
        "libero_90": (90, 400),
    }


def test_a_task_has_an_index_and_a_name() -> None:
    task = load_task("libero_object/6")
    assert task.name == "pick_up_the_butter_and_place_it_in_the_basket"
    assert task.language == "pick up the butter and place it in the basket"
    assert task.id == "libero_object/6"
    assert load_task(f"libero_object/{task.name}") == task
    assert task_object_names(task)[:2] == ("butter_1", "basket_1")


def test_the_scene_is_no_part_of_the_instruction() -> None:
    assert load_task("libero_90/0").name == "KITCHEN_SCENE10_close_the_top_drawer_of_the_cabinet"
    assert load_task("libero_90/0").language == "close the top drawer of the cabinet"
    assert load_task("libero_10/2").language == "turn on the stove and put the moka pot on it"


@pytest.mark.parametrize("suite", SUITES)
def test_every_task_has_its_files(suite: str) -> None:
    for task in list_tasks(suite):
        assert task.bddl_file.is_file()
        assert task.init_states_file.is_file()


@pytest.mark.parametrize(
    ("task_id", "message"),
    [
        ("libero_object", "expected suite/index or suite/name"),
        ("libero_object/", "expected suite/index or suite/name"),
        ("libero_object/10", "has 10 tasks, 0 to 9"),
        ("libero_object/-1", "its tasks are libero_object/0 to libero_object/9"),
        ("libero_objects/1", "did you mean 'libero_object'"),
        ("libero_object/pick_up_the_buter", "did you mean 'pick_up_the_butter_and_place_it_in_the_basket'"),
    ],
)
def test_a_task_that_does_not_exist(task_id: str, message: str) -> None:
    with pytest.raises(TaskError, match=message):
        load_task(task_id)


def test_official_states() -> None:
    states = official_states(load_task("libero_object/6"))
    assert states.shape == (50, 110)  # 1 time + 9 robot qpos + 7 objects * 7 = 59, + 9 + 7 * 6 = 51 qvel
    assert states.dtype == np.float64
    assert len(np.unique(states, axis=0)) == 50


@pytest.mark.slow
def test_states_equal_what_torch_reads() -> None:
    torch = pytest.importorskip("torch")
    task = load_task("libero_spatial/5")
    expected = torch.load(task.init_states_file, weights_only=False)
    np.testing.assert_array_equal(official_states(task), expected)


def test_a_states_file_cannot_run_code(tmp_path) -> None:
    class Evil:
        def __reduce__(self):
            return print, ("code ran",)

    path = tmp_path / "evil.pruned_init"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Evil()))
    with pytest.raises(SimulatorError, match="has no place in a file of arrays"):
        official_states(replace(load_task("libero_object/6"), init_states_file=path))


def test_a_missing_states_file(tmp_path) -> None:
    with pytest.raises(SimulatorError, match="cannot be read from"):
        official_states(replace(load_task("libero_object/6"), init_states_file=tmp_path / "none"))


def test_listing_tasks_imports_no_simulator() -> None:
    code = "import sys; from stages.sim.tasks import *; official_states(load_task('libero_object/6'));"
    code += "sys.exit(bool({'torch', 'mujoco', 'robosuite', 'libero'} & set(sys.modules)))"
    assert run([sys.executable, "-c", code]).returncode == 0
