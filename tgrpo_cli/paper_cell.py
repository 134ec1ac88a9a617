"""`python -m tgrpo_cli.paper_cell`: the command of the DVC stage behind `tgrpo paper`. Runs data/paper/cell.yaml."""

import logging
import sys

from stages.errors import TgrpoError


def main() -> None:
    """A failure the user can mend is one line on stderr, and kept for the tables that asked for the cell."""
    from stages.paper.cell_run import metrics, read_cell, run_cell
    from stages.paper.experiments import CELL, METRICS, RESULTS, ROOT
    from stages.paper.results import FAILED
    from stages.store.artifacts import write_json, write_text
    from tgrpo_cli.output import reporter

    logging.basicConfig(format="tgrpo: %(message)s")
    logging.getLogger("stages").setLevel(logging.INFO)
    cell = read_cell(ROOT / CELL)
    try:
        result = run_cell(cell, ROOT, ROOT / RESULTS, reporter())
    except TgrpoError as error:
        failed = ROOT / "failures" / cell.name / FAILED
        failed.parent.mkdir(parents=True, exist_ok=True)
        write_text(failed, f"{error}\n")
        print(f"tgrpo: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None  # what is on disk is whole, and the next attempt goes on from it
    write_json(ROOT / METRICS, metrics(result))


if __name__ == "__main__":
    main()
