"""A cell's name holds all that can change its result, and nothing else."""

from collections.abc import Callable
from pathlib import Path

import pytest

from stages.errors import ArtifactError, ParamsError, TaskError, UsageError
from stages.paper.cell_run import describe_cell, read_cell
from stages.paper.cells import Cell, distinct, make_cell, parse_numbers, parse_tasks
from stages.paper.targets import GRID, TARGETS, find_target, plan

PROFILE = Path("params.yaml")
Make = Callable[..., Cell]


@pytest.fixture
def make(project: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """Makes a cell in the project's folder."""
    monkeypatch.chdir(project)

    def cell(
        *options: str, overrides: dict[str, object] | None = None, task: str = "libero_object/6", seed: int = 0
    ) -> Cell:
        return make_cell(PROFILE, "tgrpo", overrides or {}, options, task, seed, Path("data/paper"))

    return cell


def test_what_changes_a_result_makes_another_cell(make: Make, project: Path) -> None:
    key = make().key
    assert make().key == key
    for other in (
        make(seed=1),
        make("train.iterations=3"),
        make("eval.episodes=4"),
        make("rollout.stop=first"),
        make(overrides={"update.algo": "grpo"}),
    ):
        assert other.key != key
    (project / "copy").mkdir()
    for file in (project / "data/embedded/openvla-tiny/libero_object/6").iterdir():
        (project / "copy" / file.name).write_bytes(file.read_bytes())
    assert make("policy.base=copy").key == key  # the same bytes elsewhere
    (project / "copy" / "tgrpo.json").write_text("{}")
    assert make("policy.base=copy").key != key


def test_what_changes_no_result_makes_no_other_cell(make: Make) -> None:
    key = make().key
    assert make("eval.videos=3", "train.tensorboard=false", "demos.workers=1", "sim.timeout_s=9").key == key
    assert make("sft.updates=1", "demos.noise=0.1").key == key  # the base is there already
    assert make(task="libero_object/1").key != make("sft.updates=1", task="libero_object/1").key  # this one is made


def test_weights_for_one_task_and_weights_for_all_are_the_same_weights(make: Make) -> None:
    by_task = make("advantage.per_task={libero_object/6: {a1: 10, a2: 1}, libero_object/7: {a1: 1, a2: 1}}")
    assert by_task.key == make(overrides={"advantage.a1": 10, "advantage.a2": 1}).key
    # A variant's own weights come before the profile's for the task.
    own = make(
        "advantage.per_task={libero_object/6: {a1: 10, a2: 1}}", overrides={"advantage.a1": 0.3, "advantage.a2": 0.7}
    )
    assert own.params.advantage.weights_of("libero_object/6") == (0.3, 0.7)


def test_a_base_that_does_not_exist_is_made_once_for_all_seeds(make: Make) -> None:
    a, b = make(task="libero_object/1", seed=0), make(task="libero_object/1", seed=1)
    assert a.base.made and a.base == b.base
    assert not make().base.made
    with pytest.raises(ArtifactError, match=r"nowhere/at/all does not exist; .*\{task\}"):
        make("policy.base=nowhere/at/all")
    assert not make("policy.base=openvla/some-model").base.made  # of the hub


def test_a_cell_is_read_back_as_it_was_described(make: Make, tmp_path: Path) -> None:
    for cell in (make(overrides={"update.algo": "ppo"}, seed=2), make(task="libero_object/1", seed=2)):
        path = tmp_path / "cell.yaml"
        path.write_text(describe_cell(cell))
        again = read_cell(path)
        assert (again.name, again.key, again.params, again.base) == (cell.name, cell.key, cell.params, cell.base)
    assert cell.name.startswith("libero_object-1_tgrpo_s2_")


def test_tables_share_their_cells(make: Make) -> None:
    def keys(name: str, task: str = "libero_object/6") -> dict[str, str]:
        cells = plan(TARGETS[name], PROFILE, [task], [0], [], Path("data/paper"))
        return {variant.name: cell.key for variant, cell in cells}

    tgrpo = keys("table1")["tgrpo"]
    assert keys("fig2")["tgrpo"] == keys("fig5")["tgrpo"] == keys("groupsize")["N=4"] == keys("proof")["each"] == tgrpo
    assert keys("table3")["a1=0.3,a2=0.7"] == keys("fig7")["a1=0.3,a2=0.7"] == tgrpo
    assert keys("table3")["table3"] == keys("fig3")["a1=10,a2=1"]  # the butter's pair in table 3
    assert keys("table1") == keys("fig4")
    assert len({cell for name in TARGETS for cell in keys(name).values()}) < sum(len(keys(name)) for name in TARGETS)


def test_a_seed_of_every_task_runs_before_the_next_seed(make: Make) -> None:
    cells = plan(TARGETS["table1"], PROFILE, ["libero_object/1", "libero_object/6"], [1, 0], [], Path("data/paper"))
    order = [(cell.seed, cell.task, variant.name) for variant, cell in cells]
    butter = [(1, "libero_object/6", name) for name in ("tgrpo", "tgrpo_no_t", "tgrpo_no_s")]
    assert order[:3] == butter  # its base exists, so it comes first
    assert [seed for seed, _, _ in order] == [1] * 6 + [0] * 6
    assert len(distinct(cell for _, cell in cells * 2)) == 12


def test_every_target_plans_with_both_profiles(make: Make, project: Path) -> None:
    for profile in ("params.yaml", "openvla-7b"):
        (project / "params").mkdir(exist_ok=True)
        from tests.conftest import ROOT

        (project / "params" / "openvla-7b.yaml").write_text((ROOT / "params" / "openvla-7b.yaml").read_text())
        for target in TARGETS.values():
            cells = plan(target, Path(profile), target.tasks[:1], [0], [], Path("data/paper"))
            assert [variant for variant, _ in cells] == list(target.variants)
            assert all(cell.params.eval.starts == "official" for _, cell in cells)
    assert len(GRID) == 7


@pytest.mark.parametrize("text", ["", " , ", "1,1", "-1", "a", "0.5"])
def test_lists_of_numbers_that_are_none(text: str) -> None:
    with pytest.raises(UsageError, match="--seeds"):
        parse_numbers(text, "--seeds")


def test_tasks_are_numbers_of_libero_object_or_names() -> None:
    assert parse_tasks("6, libero_goal/1") == ("libero_object/6", "libero_goal/1")
    assert parse_numbers("0,2", "--seeds") == (0, 2)
    with pytest.raises(TaskError, match="libero_object has 10 tasks"):
        parse_tasks("10")
    with pytest.raises(UsageError, match="twice"):
        parse_tasks("6,libero_object/6")
    with pytest.raises(UsageError, match=r"no 'table9' here; choose one of table1"):
        find_target("table9")


def test_an_option_that_params_do_not_know(make: Make) -> None:
    with pytest.raises(ParamsError, match=r"train\.iteration is not a known key"):
        make("train.iteration=3")
