"""What `tgrpo train` shows while it runs: a table on a terminal, lines in a log."""

import pytest
from rich.console import Console

from tgrpo_cli.output import BarReporter, LineReporter

LINE = {"iteration": "3/14", "success": "62%", "validation": "", "KL": "0.0123"}


def test_a_log_gets_one_line_an_iteration(capsys: pytest.CaptureFixture[str]) -> None:
    with LineReporter().table("a run") as add:
        add(LINE, "about 5 minutes left")
        add(LINE, "")
    assert capsys.readouterr().err.splitlines() == [
        "iteration 3/14, success 62%, KL 0.0123; about 5 minutes left",
        "iteration 3/14, success 62%, KL 0.0123",
    ]


def terminal(width: int) -> tuple[BarReporter, Console]:
    reporter = BarReporter()
    reporter._console = Console(width=width, force_terminal=True, color_system=None, record=True, quiet=False)
    return reporter, reporter._console


def test_a_terminal_shows_the_table_above_the_bar_and_keeps_it(capsys: pytest.CaptureFixture[str]) -> None:
    reporter, console = terminal(120)
    with reporter.table("a run") as add:
        for k in range(12):
            add({**LINE, "iteration": f"{k}/14"}, "about 5 minutes left")
        with reporter.bar("group", 2) as advance:
            advance(2, "1 successful")
        live = capsys.readouterr().out
        assert "about 5 minutes left" in live and "group" in live
        assert "11/14" in live and "1/14 " not in live.replace("11/14", "")  # the last ten lines only
    kept = console.export_text()
    assert all(f" {k}/14" in kept for k in range(12))
    with reporter.bar("eval", 1) as advance:
        advance(1, "")
    assert "11/14" not in capsys.readouterr().out.split("eval")[-1]  # the table is closed


def test_a_narrow_terminal_shows_the_first_columns_whole() -> None:
    reporter, console = terminal(36)
    with reporter.table("a run") as add:
        add(LINE, "")
    kept = console.export_text()
    assert "iteration  success  validation" in kept and "KL" not in kept and "…" not in kept
