"""The benchmark runs LIBERO's own wrapper for real; what it says about a machine is not tested, only that it is fair."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from stages.bench_contender import Entry
from stages.bench_sim import Record, Scale, Start, _contender, bench_sim, table
from stages.errors import SimulatorError, UsageError
from stages.params import Params
from stages.timing import Cost
from tests.conftest import Run

LIBERO, OURS, MJ_STEP = "LIBERO's wrapper", "ours", "mj_step, 25 times"


def _record(*, same: bool = True, had_processor: float = 1.0) -> Record:
    costs = {
        LIBERO: Cost(24.0, 23.0, 26.0, 24.0, 100),
        OURS: Cost(4.0, 3.9, 4.2, 4.0, 100),
        MJ_STEP: Cost(2.5, 2.4, 2.6, 2.5, 100),
    }
    return Record(
        task="libero_object/6",
        machine={"cores": 2, "processor": "some processor", "load_average": [0.1, 1.2]},
        versions={"mujoco": "3.3.2"},
        drawn_by="osmesa: llvmpipe",
        profiles={"plain": "without images", "benchmark": "256 px", "demo": "96 px"},
        states_identical=same,
        lean_difference=3e-9,
        had_processor=had_processor,
        costs={column: costs for column in ("plain", "benchmark", "demo")},
        starts={LIBERO: Start(8.0, 3.0, 4.5, 700.0), OURS: Start(1.5, 0.05, 0.4, 500.0)},
        scaling=[Scale(1, 200.0, 1.0), Scale(2, 380.0, 0.95)],
        further_env_mib=14.0,
    )


def test_the_table_gives_each_cost_as_both_ratios() -> None:
    """24 ms against 4 ms is 6 times as fast; 4 ms against 2.5 ms takes 1.6 times as long; 1000 / 4 is 250 steps/s."""
    lines = list(table(_record()))
    ours = [line.split() for line in lines if line.startswith("  ours") and line.endswith("x")]
    assert ours == [["ours", "4.00", "3.90-4.20", "4.00", "250.0", "6.0", "x", "1.6", "x"]] * 3
    assert any(re.fullmatch(r"  2 +380 +95%", line) for line in lines)
    assert not any("DIFFER" in line or "BUSY" in line for line in lines)


def test_the_table_says_when_it_is_not_to_be_trusted() -> None:
    assert any(line.startswith("STATES DIFFER") for line in table(_record(same=False)))
    assert any(line.startswith("THE MACHINE IS BUSY") and "60%" in line for line in table(_record(had_processor=0.6)))


def test_the_record_is_json_with_the_ratios() -> None:
    record = json.loads(_record().to_json())
    assert record["ratios"]["demo"][OURS] == {"steps_per_s": 250.0, "speed_to_libero": 6.0, "time_to_mj_step": 1.6}
    assert record["machine"]["processor"] == "some processor"
    assert record["scaling"][1] == {"envs": 2, "steps_per_s": 380.0, "efficiency": 0.95}


def test_contenders_come_to_the_same_states(params: Params) -> None:
    """LIBERO's own wrapper beside ours and beside what drives the plain mj_step, after each of two rounds."""
    sim = params.sim.benchmark().model_copy(update={"renderer": "osmesa"})
    states = {}
    for who in ("libero", "ours", "mj_step"):
        with _contender(Entry(who, "libero_object/6", sim, images=False)) as contender:  # type: ignore[arg-type]
            start = contender.start(1, contender.first_image_s)
            contender.run(3)
            contender.run(2)
            assert 0 < start.reset_s < start.episode_s
            assert 100 < start.memory_mib < 4000
            assert len(contender.seconds) == 5
            assert all(clock > 0 and processor > 0 for clock, processor in contender.seconds)
            states[who] = contender.states
    assert states["ours"] == states["libero"] == states["mj_step"]
    assert states["ours"][0] != states["ours"][1]


def test_a_contender_that_cannot_start(params: Params) -> None:
    entry = Entry(
        "ours", "libero_object/6", params.sim.model_copy(update={"assets_dir": "/nowhere", "assets": "libero"}), False
    )
    with (
        pytest.raises(SimulatorError, match=r"ours on libero_object/6: the assets in /nowhere lack"),
        _contender(entry),
    ):
        pass


def test_a_contender_that_dies(params: Params) -> None:
    with _contender(Entry("ours", "libero_object/6", params.sim, images=False)) as contender:
        with pytest.raises(SimulatorError, match=r"its process ended \(ValueError: .*\); run: tgrpo doctor"):
            contender.ask("run many")
        with pytest.raises(SimulatorError, match="its process ended"):
            contender.ask("run 1")


@pytest.mark.parametrize("steps", [9, 901])
def test_steps_out_of_range(params: Params, steps: int) -> None:
    with pytest.raises(UsageError, match=f"--steps {steps}: expected 10 to 900"):
        bench_sim(params, steps)


def test_a_file_that_cannot_be_written_is_said_before_the_run(tgrpo: Callable[..., Run]) -> None:
    run = tgrpo("bench", "sim", "--json", "nowhere/out.json")
    assert run.code == 2
    assert run.err.strip() == "tgrpo: --json nowhere/out.json: there is no folder nowhere; make it first"


@pytest.mark.slow
def test_the_whole_benchmark(tgrpo: Callable[..., Run], project: Path) -> None:
    run = tgrpo("bench", "sim", "--quick", "--json", "out.json")
    assert run.code == 0, run.err
    record = json.loads((project / "out.json").read_text())
    assert record["states_identical"]
    lean = "ours, lean physics"
    assert list(record["costs"]["plain"]) == [LIBERO, OURS, lean, MJ_STEP]
    assert list(record["costs"]["benchmark"]) == [LIBERO, OURS, MJ_STEP]
    assert list(record["costs"]["demo"]) == [LIBERO, lean, MJ_STEP]
    assert all(cost["steps"] == 20 for costs in record["costs"].values() for cost in costs.values())
    assert next(scale["envs"] for scale in record["scaling"]) == 1
    assert 1 < record["further_env_mib"] < 500
    assert "bit" in run.out and "ours" in run.out
