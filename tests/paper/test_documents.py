"""Documents from hand-made results: their numbers, what is missing, and which cells run."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from stages.errors import ArtifactError
from stages.paper.cells import Cell
from stages.paper.documents import Request, paper
from stages.paper.targets import TARGETS, plan
from stages.reporting import Silent
from tests.paper.hand_made import history, result, store

TASKS = ("libero_object/6", "libero_object/7")
ROOT = Path("data/paper")
Print = Callable[..., str]


class Notes(Silent):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, text: str) -> None:
        self.lines.append(text)


@pytest.fixture
def at(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(project)
    return project


def cells_of(
    name: str, tasks: tuple[str, ...] = TASKS, seeds: tuple[int, ...] = (0, 1)
) -> dict[tuple[str, str, int], Cell]:
    planned = plan(TARGETS[name], Path("params.yaml"), tasks, seeds, (), ROOT)
    return {(variant.name, cell.task, cell.seed): cell for variant, cell in planned}


def request(name: str, **options: object) -> Request:
    given: dict[str, object] = {"tasks": TASKS, "seeds": (0, 1), "run": False, **options}
    return Request(TARGETS[name], Path("params.yaml"), **given)  # type: ignore[arg-type]


def row(text: str, start: str, section: str = "") -> list[str]:
    """The cells of the table row that starts so, after the section's heading."""
    lines = text[text.index(section) :].splitlines()
    return [
        cell.strip() for cell in next(line for line in lines if line.startswith(f"| {start}")).strip("|").split("|")
    ]


def test_table_1_puts_ours_beside_the_papers(at: Path) -> None:
    cells = cells_of("table1")
    for (variant, task, seed), cell in cells.items():
        if task == TASKS[0]:
            after = {"tgrpo": ("1111", "1110"), "tgrpo_no_t": ("1000", "0000"), "tgrpo_no_s": ("1100", "1100")}[variant]
            store(ROOT, cell, result("1100", after[seed], sampled=("10001000", "11001100")))
    store(ROOT, cells["tgrpo", TASKS[1], 0], result("0000", "1000"))
    document = paper(request("table1")).read_text()
    assert row(document, "7 (libero_object/6)") == [
        "7 (libero_object/6)",
        "50% (2/4); paper 98%",  # the greedy base counts once
        "88% (7/8); paper 98%",
        "12% (1/8); paper 92%",
        "50% (4/8); paper 96%",
    ]
    assert row(document, "8 (libero_object/7)")[2:] == [
        "25% (1/4); paper 98%",
        "not run; paper 92%",
        "not run; paper 96%",
    ]
    # Only task 7 has all columns, so only it makes the means.
    assert row(document, "**mean of 1 task")[1:3] == ["50.0%; paper 98%", "87.5%; paper 98%"]
    assert row(document, "documents' mean")[1:] == ["86.4%", "91.0%", "73.6%", "86.8%"]
    sampled = "## Success, sampled at temperature 1"
    assert row(document, "7 (libero_object/6)", sampled)[1:3] == ["25% (4/16)", "50% (8/16)"]
    # base 2 + 2 + 0 of 12 greedy, trained 4 + 3 + 1; never lost one: McNemar 2 / 2^4
    pooled = row(document, "TGRPO | greedy", "## Base against")
    assert pooled[2:6] == ["3", "12", "33.3%", "66.7%"]
    assert pooled[6].startswith("+33.3 (") and pooled[7:] == ["0 : 4", "0.125", "0 : 3", "0.250"]
    others = row(document, "TGRPO without T (step level alone) | greedy", "## TGRPO against the others")
    assert others[2:6] == ["2", "8", "12.5%", "87.5%"]
    best = row(document, "7 (libero_object/6)", "by the paper's protocol")
    assert best == ["7 (libero_object/6)", "2", "88% (7/8)", "100% (4/4)"]
    assert document.count(": not run\n") == 3  # five cells that were asked for, of which two by two differ in the seed
    assert "task 8 (libero_object/7), seeds 0, 1: not run" in document
    assert "12 runs; ran: 7 (tasks 7 (libero_object/6), 8 (libero_object/7); seeds 0, 1)" in document
    assert "tgrpo paper table1 --profile cpu --tasks libero_object/6,libero_object/7 --seeds 0,1" in document
    assert "torch 2.13.0" in document and "2 cores of Z80" in document
    assert (at / "docs/results/cpu/table1.png").stat().st_size < 200_000
    numbers = json.loads((at / "docs/results/cpu/table1.json").read_text())
    assert (numbers["asked"]["cells"], numbers["ran"]) == (12, 7)
    assert numbers["paired"]["tgrpo"]["0"]["only_trained"] == 4
    assert [cell["status"] for cell in numbers["cells"]].count("not run") == 5
    index = (at / "docs/results/README.md").read_text()
    assert row(index, "[Table 1")[1:5] == ["cpu", "libero_object/6, libero_object/7", "0, 1", "7 of 12"]


@pytest.mark.parametrize("name", TARGETS)
def test_a_document_without_any_run_says_so(at: Path, name: str) -> None:
    document = paper(request(name, **({"tasks": TASKS[:1]} if name == "fig7" else {}))).read_text()
    assert "None has run." in document
    assert "no run yet" in document
    picture = at / "docs/results/cpu" / f"{name}.png"
    assert picture.exists() == (name == "fig6")  # which table 3 alone is enough for


def test_what_cannot_be_drawn_any_more_does_not_stay(at: Path) -> None:
    cells = cells_of("table1")
    store(ROOT, cells["tgrpo", TASKS[0], 0], result("10", "11"))
    picture = paper(request("table1")).with_suffix(".png")
    assert picture.exists()
    paper(request("table1", options=("train.iterations=3",)))
    assert not picture.exists()


def test_figures_from_the_histories_of_cells(at: Path) -> None:
    for cell in cells_of("fig4", TASKS[:1]).values():
        store(ROOT, cell, result("10", "11"))
        history(ROOT, cell, ["1,0.2,-1.1,0.9", "2,0.4,-0.9,", "3,0.5,-0.8,0.7"])  # an empty field is not known
    for name in ("fig3", "fig4"):
        for cell in cells_of(name, TASKS[:1]).values():
            if not (ROOT / "cells" / cell.name).exists():
                store(ROOT, cell, result("10", "11"))
                history(ROOT, cell, ["1,0.2,-1.1,0.9", "2,0.4,-0.9,0.8"])
        document = paper(request(name, tasks=TASKS[:1]))
        assert document.with_suffix(".png").stat().st_size < 200_000
        assert f"![{TARGETS[name].title}]({name}.png)" in document.read_text()


def test_the_grid_of_weights(at: Path) -> None:
    grid = cells_of("fig7", TASKS[:1], (0,))
    for n, (key, cell) in enumerate(grid.items()):
        if key[0] != "a1=10,a2=5":
            store(ROOT, cell, result("1000", "1" * (n % 4 + 1) + "0" * (3 - n % 4)))
    for name in ("fig6", "fig7"):
        document = paper(request(name, tasks=TASKS[:1], seeds=(0,)))
        assert document.with_suffix(".png").stat().st_size < 200_000
        text = document.read_text()
        assert row(text, "a1 = 0.3, a2 = 0.7")[2] == "96% (tables 1 and 3)"
        assert row(text, "a1 = 10, a2 = 5")[1] == "not run"
    text = paper(request("fig6", tasks=TASKS[:1], seeds=(0,))).read_text()
    assert row(text, "mean of a1") == ["mean of a1", "4.30", "4.255", "**no**"]
    assert row(text, "Pearson r") == ["Pearson r", "0.52", "0.522", "yes"]
    assert "Without (10, 5), r is 0.70" in text


def test_group_sizes_and_suites_beside_the_posts(at: Path) -> None:
    for (variant, _, _), cell in cells_of("groupsize", TASKS[:1], (0,)).items():
        store(ROOT, cell, result("1000", {"N=2": "1000", "N=4": "1111", "N=8": "1110"}[variant]))
    text = paper(request("groupsize", tasks=TASKS[:1], seeds=(0,))).read_text()
    assert row(text, "N = 2") == ["N = 2", "25.0%", "1.5", "76.2%"]
    assert row(text, "N = 4")[1:] == ["100.0%", "1.5", "81.0%"]
    text = paper(request("suites", tasks=TASKS[:1], seeds=(0,))).read_text()
    assert row(text, "TGRPO, ours") == ["TGRPO, ours", "not run", "100.0% (1 task)", "not run", "not run", ""]
    assert row(text, "SFT, the post")[-1] == "76.5%, but the four come to 75.8%"


def test_the_proof_isolates_the_stop_rule(at: Path) -> None:
    for (variant, _, _), cell in cells_of("proof").items():
        after = "1111" if variant == "each" else "1000"
        store(ROOT, cell, result("1100", after, sampled=("10001000", "11001000")))
    text = paper(request("proof")).read_text()
    title = "TGRPO, every trajectory to its own end"
    # 4 runs of 4 states: 2 gained each, none lost: 2 / 2^8. Wilson of 8/16 is 28.0% to 72.0%, of 16/16 80.6% to 100%, and
    # Newcombe without correlation 50 - sqrt(19.4^2 + 22.0^2) to 50 + sqrt(0 + 22.0^2).
    assert row(text, f"{title} | greedy")[2:9] == [
        "4",
        "16",
        "50.0%",
        "100.0%",
        "+50.0 (+20.7 to +72.0)",
        "0 : 8",
        "0.008",
    ]
    other = row(text, "TGRPO, the first success ends all (the paper) | greedy", "against the others")
    assert other[4:6] == ["25.0%", "100.0%"]
    assert text.count("| 1.5 | 0.5 |") == 8  # every run, with its minutes


def test_evaluations_that_do_not_repeat_themselves_are_pointed_out(at: Path) -> None:
    cells = cells_of("table1")
    store(ROOT, cells["tgrpo", TASKS[0], 0], result("1100", "1111"))
    store(ROOT, cells["tgrpo", TASKS[0], 1], result("1010", "1111"))
    assert "the greedy evaluations of one base differ between runs" in paper(request("table1")).read_text()


def test_what_fits_runs_and_a_failure_does_not_stop_the_others(at: Path) -> None:
    ran: list[str] = []

    def run_cell(cell: Cell, root: Path) -> None:
        ran.append(cell.name)
        if len(ran) == 2:
            (root / "failures" / cell.name).mkdir(parents=True)
            (root / "failures" / cell.name / "failed.txt").write_text("no expert for this task\n")
        else:
            store(root, cell, result("10", "11"))

    notes = Notes()
    text = paper(request("table1", run=True, max_cells=3), notes, run_cell=run_cell).read_text()
    planned = [cell.name for cell in cells_of("table1").values()]
    assert ran == planned[:3]
    assert "failed: no expert for this task" in text
    assert notes.lines[-1] == "stopped after 3 cells, as asked; 9 are left"
    ran.clear()
    paper(request("table1", run=True, budget_hours=0.0), notes, run_cell=run_cell)
    assert ran == planned[1:2]  # the first that has no result always starts; the next would not fit
    assert "would not fit into 0 h" in notes.lines[-1]
    ran[:] = ["", ""]
    paper(request("table1", run=True), notes, run_cell=run_cell)
    assert len(ran) == 2 + 9
    ran.clear()
    paper(request("table1", run=True), notes, run_cell=run_cell)
    assert ran == []  # nothing is left to run


def test_a_clone_has_what_ran_elsewhere(at: Path) -> None:
    """Records of cells lie beside the documents; data/ is no part of a repository."""
    cell = cells_of("table1")["tgrpo", TASKS[0], 0]
    store(ROOT, cell, result("10", "11"))
    before = paper(request("table1")).read_text()
    shutil.rmtree(ROOT)
    ran: list[str] = []
    assert paper(request("table1")).read_text() == before
    paper(request("table1", run=True, max_cells=1), run_cell=lambda cell, root: ran.append(cell.name))
    assert ran and ran[0] != cell.name
    other = cells_of("table1", seeds=(2,))["tgrpo", TASKS[0], 2]
    assert not (ROOT / "cells" / other.name).exists()


def test_a_result_that_cannot_be_read_is_named(at: Path) -> None:
    cell = cells_of("table1")["tgrpo", TASKS[0], 0]
    store(ROOT, cell, result("10", "11"))
    (ROOT / "cells" / cell.name / "result.json").write_text('{"schema": 1}')
    with pytest.raises(ArtifactError, match=rf"{cell.name}/result.json cannot be read .* run the cell again"):
        paper(request("table1"))


def test_the_headline_is_of_the_first_method_that_has_run(at: Path) -> None:
    store(ROOT, cells_of("table1")["tgrpo_no_t", TASKS[0], 0], result("10", "11"))
    assert (
        "- Result: TGRPO without T (step level alone), greedy, 1 run: 50.0% to 100.0%"
        in paper(request("table1")).read_text()
    )


def test_the_headline_of_peers_chooses_none_of_them(at: Path) -> None:
    cells = cells_of("groupsize")
    for name, seed, after in (("N=4", 0, "1111"), ("N=4", 1, "1100"), ("N=8", 0, "1000")):
        store(ROOT, cells[name, TASKS[0], seed], result("1100", after))
    document = paper(request("groupsize")).read_text()
    assert "- Result: greedy successes, before to after: N = 4: 4 to 6 of 8; N = 8: 2 to 1 of 4.\n" in document


def test_methods_that_no_one_can_tell_apart_are_said_to_be_so(at: Path) -> None:
    cells = cells_of("groupsize", seeds=(0,))
    for name, after in (("N=2", "1111"), ("N=4", "1111")):
        store(ROOT, cells[name, TASKS[0], 0], result("1100", after))
    heading = "## Do the trained policies differ at all?"
    assert heading not in paper(request("groupsize", seeds=(0,))).read_text()  # two methods have McNemar's test
    store(ROOT, cells["N=8", TASKS[0], 0], result("1100", "0011"))
    document = paper(request("groupsize", seeds=(0,))).read_text()
    assert row(document, "greedy", heading) == ["greedy", "3", "1", "4", "50.0% to 100.0%", "0.333"]


def test_minutes_of_several_machines_are_not_compared(at: Path) -> None:
    cells = cells_of("table1")
    for name, processor in (("tgrpo", "Z80"), ("tgrpo_no_t", "Z80"), ("tgrpo_no_s", "6502")):
        made = replace(result("10", "11"), machine={"cores": 2, "processor": processor})
        store(ROOT, cells[name, TASKS[0], 0], made)
    document = paper(request("table1")).read_text()
    assert "- Machines: 2 cores of Z80 (2 runs); 2 cores of 6502 (1 run)." in document
    assert "minutes compare within one only" in document
