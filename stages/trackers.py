"""Where a run's figures go besides its own files: TensorBoard, and Weights & Biases when params name a project.

Both show what lies in the run's history.csv, telemetry.csv and validations/, one step per iteration, step 0 being the start:

    sampled/    what the trajectories showed: success, return, milestone, log-prob, entropy, ...
    update/     what the update did: KL, clip fraction, ratios, gradient norm, ...
    time/       seconds of each part, environment steps a second
    validation/ success and return on the validation states
"""

import importlib.metadata
import json
import math
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from stages.errors import TgrpoError
from stages.params import Params
from stages.store.artifacts import write_json

Figures = Mapping[str, float]  # tag -> value
Log = Callable[[int, Figures], None]  # called with the iteration and its figures, in order of the iterations

TENSORBOARD = "tensorboard"
WANDB = "wandb.json"  # the id by which a resumed run goes on with its own page
SAMPLED = (
    "success",
    "return",
    "decisions",
    "milestone",
    "log_prob",
    "entropy",
    "groups",
    "groups_used",
    "zero_variance",
)


def figures(
    row: Mapping[str, float] | None, line: Mapping[str, float] | None, validation: Mapping[str, Any] | None
) -> Figures:
    """The figures of one iteration by tag, from its lines of history and telemetry and its validation, where it has them.

    What does not apply (NaN in the history) is left out.
    """
    tagged: dict[str, float] = {}
    for name, value in (row or {}).items():
        tagged[f"{'sampled' if name in SAMPLED else 'update'}/{name}"] = value
    for name, value in (line or {}).items():
        tagged[f"time/{name}"] = value
    for name in ("success_rate", "mean_return") if validation else ():
        tagged[f"validation/{name}"] = validation[name]  # type: ignore[index]
    return {tag: value for tag, value in tagged.items() if not tag.endswith("/iteration") and math.isfinite(value)}


def require_trackers(params: Params) -> None:
    """Raises TgrpoError when params ask for Weights & Biases and it is not installed; nothing has run yet then."""
    if params.train.wandb is None:
        return
    try:
        importlib.metadata.version("wandb")
    except importlib.metadata.PackageNotFoundError:
        raise TgrpoError(
            f"train.wandb names the project {params.train.wandb!r}, but the package wandb is not installed; "
            "`pip install wandb`, or set train.wandb=null (TensorBoard and the CSV files need nothing)"
        ) from None


@contextmanager
def open_trackers(params: Params, run: Path) -> Iterator[Log]:
    """Opens what params ask for and yields the function that logs to all of it.

    A resumed run logs all its iterations again, from its files: TensorBoard's file is written anew, so that no step is
    there twice, and Weights & Biases takes those that it lacks.

    Args:
        run: the run's folder; event files go into its `tensorboard/`.
    """
    with ExitStack() as stack:
        logs = []
        if params.train.tensorboard:
            logs.append(stack.enter_context(_tensorboard(run / TENSORBOARD)))
        if params.train.wandb is not None:
            logs.append(stack.enter_context(_wandb(params, params.train.wandb, run)))

        def log(iteration: int, values: Figures) -> None:
            for one in logs:
                one(iteration, values)

        yield log


@contextmanager
def _tensorboard(folder: Path) -> Iterator[Log]:
    # Not SummaryWriter: its thread writes up to two minutes late, and loses that when the process is killed.
    from tensorboardX.event_file_writer import EventsWriter
    from tensorboardX.proto.event_pb2 import Event, SessionLog
    from tensorboardX.summary import scalar

    folder.mkdir(exist_ok=True)
    for earlier in folder.glob("events.out.tfevents.*"):
        earlier.unlink()
    writer = EventsWriter(str(folder / "events"))
    # A viewer that is open forgets what it read from the file that was there.
    writer.write_event(Event(wall_time=time.time(), step=0, session_log=SessionLog(status=SessionLog.START)))
    try:

        def log(iteration: int, values: Figures) -> None:
            for tag, value in values.items():
                writer.write_event(Event(wall_time=time.time(), step=iteration, summary=scalar(tag, value)))
            writer.flush()

        yield log
    finally:
        writer.close()


@contextmanager
def _wandb(params: Params, project: str, run: Path) -> Iterator[Log]:
    import wandb

    at = run / WANDB
    if not at.exists():
        write_json(at, {"id": secrets.token_hex(8), "project": project})
    page = wandb.init(
        project=project,
        name=run.name,
        id=json.loads(at.read_text())["id"],
        resume="allow",
        dir=str(run),
        config=params.model_dump(exclude={"loop"}),
        settings=wandb.Settings(silent=True, console="off"),  # progress bars are no log
    )
    known = page.starting_step  # of a page that is gone on with; wandb refuses steps before it
    try:

        def log(iteration: int, values: Figures) -> None:
            if iteration >= known:
                page.log(dict(values), step=iteration)

        yield log
    finally:
        page.finish()
