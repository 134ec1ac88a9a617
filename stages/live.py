"""What a person sees of a run while it goes on: a line of the table for each iteration, and what the rest will take."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from stages.estimate import clock, size
from stages.run_folder import Run
from stages.telemetry import Line, seconds_an_iteration


def cells(
    k: int, last: int, row: Mapping[str, float], line: Line, validation: Mapping[str, Any] | None
) -> dict[str, str]:
    """An iteration as a line of the live table, from its lines of history and telemetry; empty where nothing applies."""
    numbers = {
        "return": (row["return"], ".1f"),
        "KL": (row["kl_end"], ".4f"),
        "entropy": (row["entropy"], ".3f"),
        "log-prob": (row["log_prob"], ".2f"),
        "clipped": (row["clip_fraction"], ".1%"),
        "milestone": (row["milestone"], ".2f"),
        "ratio 5%": (row["ratio_p05"], ".2f"),
        "ratio 95%": (row["ratio_p95"], ".2f"),
        "gradient": (row["grad_norm"], ".2f"),
        "ratio 50%": (row["ratio_p50"], ".2f"),
        "no variance": (row["zero_variance"], ".0%"),
    }
    return {
        "iteration": f"{k}/{last}",
        "success": f"{row['success']:.0%}",
        "validation": f"{validation['successes']}/{validation['episodes']}" if validation else "",
        "groups": f"{row['groups_used']:.0f}/{row['groups']:.0f}",
        "seconds": f"{line['seconds']:.1f}",
        "sample+weigh+update": "+".join(f"{line[f'seconds_{part}']:.1f}" for part in ("sample", "weigh", "update")),
        "steps/s": f"{line['env_steps_per_s']:.0f}",
        **{name: format(value, spec) if math.isfinite(value) else "" for name, (value, spec) in numbers.items()},
    }


def cost(run: Run, k: int, lines: Sequence[Line], left: float) -> str:
    """What iteration k took and the rest of the run will, told once, after the first iteration of a process.

    Args:
        lines: of the telemetry, that of iteration k last.
        left: seconds to the end of the run.
    """
    line = lines[-1]
    folders = [run.group(k, 0).parent, run.advantages(k, 0).parent, run.checkpoint(k)]
    disk = sum(file.stat().st_size for folder in folders for file in folder.rglob("*") if file.is_file())
    return (
        f"an iteration takes {clock(seconds_an_iteration(lines))} (sampling {clock(line['seconds_sample'])}, update "
        f"{clock(line['seconds_update'])}) and {size(disk)} of disk; up to iteration {run.last}, with validations and the last "
        f"evaluation, about {clock(left)} and {size(disk * (run.last - k))} more, unless the run ends earlier"
    )
