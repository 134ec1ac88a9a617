"""`tgrpo bench sim`: what one control step costs in LIBERO's wrapper, in this project's environment and in MuJoCo alone.

All contenders start from one official initial state and take the same random actions, in rounds of a few steps, one
contender after the other, so that whatever else the machine does hits all alike. They come to the same states to the last
bit, or the table says so; only lean physics may differ. Start-up, resets, memory and the vector of environments are
measured in the same run.
"""

import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stages.bench_contender import MAX_STEPS, STATE, Entry
from stages.errors import SimulatorError, UsageError
from stages.machine import cores, machine
from stages.params import Params, SimParams
from stages.reporting import Reporter, Silent
from stages.store.provenance import package_versions
from stages.timing import IDLE, Cost, Seconds

ROUND = 10  # control steps of one contender before the next one's turn
MANY_ENVS = 16  # more than most machines have cores
_LIBERO, _OURS, _LEAN, _MJ_STEP = "LIBERO's wrapper", "ours", "ours, lean physics", "mj_step, 25 times"


@dataclass(frozen=True)
class Start:
    """Of one contender with images: seconds to the first one. Memory is that of its process."""

    process_s: float  # from the start of a Python process, after an earlier one has filled the caches
    reset_s: float  # from one episode to the next, to an official state
    episode_s: float  # the same with LIBERO's 10 settling no-ops
    memory_mib: float


@dataclass(frozen=True)
class Scale:
    """N environments in workers, demo profile, an image for every decision."""

    envs: int
    steps_per_s: float  # of all together
    efficiency: float  # of N times one environment's speed, or of as many times as there are cores


@dataclass(frozen=True)
class Record:
    """All that one run measured. Columns are `plain`, `benchmark` and `demo`."""

    task: str
    machine: dict[str, Any]
    versions: dict[str, str]
    drawn_by: str
    profiles: dict[str, str]  # column -> how its images look
    states_identical: bool  # of all contenders but those of lean physics, after every round
    lean_difference: float  # how far lean physics is from them at most, in m, rad, m/s or rad/s
    had_processor: float  # the share of the time in which the contenders without images could run; 1 on an idle machine
    costs: dict[str, dict[str, Cost]]  # column -> contender -> cost
    starts: dict[str, Start]  # contender -> start
    scaling: list[Scale]
    further_env_mib: float | None

    def to_json(self) -> str:
        ratios = {
            column: {
                who: {
                    "steps_per_s": 1000 / cost.median,
                    "speed_to_libero": costs[_LIBERO].median / cost.median,
                    "time_to_mj_step": cost.median / costs[_MJ_STEP].median,
                }
                for who, cost in costs.items()
            }
            for column, costs in self.costs.items()
        }
        return json.dumps({**asdict(self), "ratios": ratios}, indent=1)


def bench_sim(params: Params, steps: int = 100, *, quick: bool = False, reporter: Reporter | None = None) -> Record:
    """Runs all contenders on the params' task.

    Args:
        params: `sim.assets` are those of the benchmark column; the demo column has primitive ones where the task has.
        steps: control steps of each contender, 10 to 900.
        quick: one reset in place of several, and no more environments than cores.
        reporter: hears of the progress.

    Raises:
        SimulatorError: a contender does not start, or breaks.
        UsageError: a number of steps out of range.
    """
    from stages.sim.backends import choose_backend
    from stages.sim.tasks import load_task

    if not ROUND <= steps <= MAX_STEPS:
        raise UsageError(
            f"--steps {steps}: expected {ROUND} to {MAX_STEPS}; LIBERO's wrapper ends an episode after 1000"
        )
    reporter = reporter or Silent()
    task = load_task(params.task)
    sim = params.sim.model_copy(update={"renderer": choose_backend(params.sim.renderer)})
    benchmark = sim.benchmark()
    demo = sim.model_copy(update={"assets": "primitive"} if task.suite == "libero_object" else {})
    load_before = os.getloadavg()[0]
    first_images = {  # ours first: where assets are missing, it says what to do
        _OURS: _first_image(Entry("ours", task.id, benchmark, images=True), 2 if quick else 4, reporter),
        _LIBERO: _first_image(Entry("libero", task.id, benchmark, images=True), 2 if quick else 4, reporter),
    }
    with contextlib.ExitStack() as stack:
        contenders = {}
        for name, entry in {
            "libero plain": Entry("libero", task.id, benchmark, images=False),
            "ours plain": Entry("ours", task.id, benchmark, images=False),
            "ours lean": Entry("ours", task.id, benchmark.model_copy(update={"physics": "lean"}), images=False),
            "mj_step": Entry("mj_step", task.id, benchmark, images=False),
            "libero images": Entry("libero", task.id, benchmark, images=True),
            "ours benchmark": Entry("ours", task.id, benchmark, images=True),
            "ours demo": Entry("ours", task.id, demo, images=True),
        }.items():
            reporter.note(f"starts {name}")
            contenders[name] = stack.enter_context(_contender(entry))
        starts = {
            who: contenders[name].start(1 if quick else repeats, first_images[who])
            for who, name, repeats in ((_LIBERO, "libero images", 2), (_OURS, "ours benchmark", 10))
        }
        for contender in contenders.values():
            contender.ask("start")
        with reporter.bar("control steps", steps * len(contenders)) as advance:
            for done in range(0, steps, ROUND):
                for contender in contenders.values():
                    contender.run(min(ROUND, steps - done))
                    advance(min(ROUND, steps - done), "")
    cost = {name: Cost.of(contender.seconds) for name, contender in contenders.items()}
    raw = {_MJ_STEP: cost["mj_step"]}
    libero = np.array(contenders["libero images"].states)
    differences = {name: np.abs(np.array(contender.states) - libero).max() for name, contender in contenders.items()}
    clock, processor = np.sum(contenders["libero plain"].seconds + contenders["ours plain"].seconds, axis=0)
    scaling, further = _scaling(demo, task.id, quick, reporter)
    return Record(
        task=task.id,
        machine={**machine(), "load_average": [load_before, os.getloadavg()[0]]},
        versions=dict(package_versions()),
        drawn_by=contenders["ours benchmark"].drawn_by,
        profiles={"plain": "without images", "benchmark": _look(benchmark), "demo": _look(demo)},
        states_identical=all(differences[name] == 0 for name in contenders if contenders[name].exact),
        lean_difference=max(float(differences[name]) for name in ("ours lean", "ours demo")),
        had_processor=min(1.0, float(processor / clock)),
        costs={
            "plain": {_LIBERO: cost["libero plain"], _OURS: cost["ours plain"], _LEAN: cost["ours lean"], **raw},
            "benchmark": {_LIBERO: cost["libero images"], _OURS: cost["ours benchmark"], **raw},
            "demo": {
                _LIBERO: cost["libero images"],
                _LEAN if demo.physics == "lean" else _OURS: cost["ours demo"],
                **raw,
            },
        },
        starts=starts,
        scaling=scaling,
        further_env_mib=further,
    )


def table(record: Record) -> Iterator[str]:
    """The record as text, one line at a time."""
    machine = record.machine
    load = " to ".join(f"{value:.1f}" for value in machine["load_average"])
    yield f"{record.task}, official state {STATE}; {machine['cores']} cores of {machine['processor']}, load {load}"
    yield f"images by {record.drawn_by}"
    if record.states_identical:
        yield f"states after every round: identical to the last bit; lean physics within {record.lean_difference:.0e}"
    else:
        yield "STATES DIFFER between the contenders: this is not one simulation, do not compare its figures"
    if record.had_processor < IDLE:
        yield f"THE MACHINE IS BUSY: contenders could run for {record.had_processor:.0%} of the time; do not quote this"
    yield ""
    head = f"{'one control step (1/20 s)':<34}{'ms':>8}{'10-90%':>16}{'CPU ms':>9}{'steps/s':>10}"
    yield f"{head}{'speed to':>12}{'time to':>11}"
    yield f"{'':<{len(head)}}{'LIBERO':>12}{'mj_step':>11}"
    for column, costs in record.costs.items():
        yield record.profiles[column] if column == "plain" else f"{column} image: {record.profiles[column]}"
        for who, cost in costs.items():
            spread = f"{cost.p10:.2f}-{cost.p90:.2f}"
            line = f"  {who:<32}{cost.median:>8.2f}{spread:>16}{cost.cpu:>9.2f}{1000 / cost.median:>10.1f}"
            yield f"{line}{costs[_LIBERO].median / cost.median:>10.1f} x{cost.median / costs[_MJ_STEP].median:>9.1f} x"
    yield "LIBERO's images are two cameras, ours is one; LIBERO beside the demo profile is the one beside the benchmark."
    yield ""
    yield f"{'start, with the benchmark image':<34}{'process':>10}{'reset':>10}{'+ settling':>12}{'memory':>12}"
    for who, start in record.starts.items():
        yield (
            f"  {who:<32}{start.process_s:>8.2f} s{start.reset_s:>8.3f} s{start.episode_s:>10.3f} s"
            f"{start.memory_mib:>8.0f} MiB"
        )
    yield ""
    yield f"{'environments, demo profile':<34}{'steps/s':>10}{'efficiency':>12}"
    for scale in record.scaling:
        yield f"  {scale.envs:<32}{scale.steps_per_s:>10.0f}{scale.efficiency:>11.0%}"
    if record.further_env_mib is not None:
        yield f"a further environment takes {record.further_env_mib:.0f} MiB of its own"


class _Contender:
    """The parent's end of a `stages.bench_contender` process."""

    def __init__(self, entry: Entry, process: "subprocess.Popen[str]", log: Path, began: float) -> None:
        self._entry, self._process, self._log = entry, process, log
        self.seconds: list[Seconds] = []  # of every control step
        self.states: list[list[float]] = []  # the flattened MuJoCo state after every round; JSON keeps every bit
        self.exact = entry.sim.physics == "exact"
        first = self._answer()
        self.first_image_s: float = first["at"] - began
        self.drawn_by: str = first["drawn_by"]

    def ask(self, request: str) -> dict[str, Any]:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # its end is reported below, with what it said
            print(request, file=self._process.stdin, flush=True)
        return self._answer()

    def run(self, steps: int) -> None:
        answer = self.ask(f"run {steps}")
        self.seconds += answer["seconds"]
        self.states.append(answer["state"])

    def start(self, repeats: int, first_image_s: float) -> Start:
        answers = [self.ask("start") for _ in range(repeats)]
        reset, start = (statistics.median(answer[key] for answer in answers) for key in ("reset", "start"))
        return Start(first_image_s, reset, start, answers[-1]["memory"])

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        answer: dict[str, Any] = json.loads(line) if line else {"error": self._last_words()}
        if "error" in answer:
            raise SimulatorError(f"{self._entry.who} on {self._entry.task}: {answer['error']}")
        return answer

    def _last_words(self) -> str:
        status = self._process.wait()
        lines = [line for line in self._log.read_text(errors="replace").splitlines() if line.strip()]
        return f"its process ended ({lines[-1].strip() if lines else f'status {status}'}); run: tgrpo doctor"


@contextlib.contextmanager
def _contender(entry: Entry) -> Iterator[_Contender]:
    from stages.sim.runtime import WORKER_ENVIRONMENT

    command = [sys.executable, "-m", "stages.bench_contender", entry.to_json()]
    environment = {**os.environ, **WORKER_ENVIRONMENT}
    with tempfile.NamedTemporaryFile("w") as log:
        began = time.monotonic()
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, env=environment, text=True
        )
        try:
            yield _Contender(entry, process, Path(log.name), began)
        finally:
            process.kill()  # it has nothing to save
            process.communicate()


def _first_image(entry: Entry, times: int, reporter: Reporter) -> float:
    """Seconds from the start of a process to its first image: the median of all but the first, which fills the caches.

    Alone, because a machine may take a second to find the memory that other processes do not hold already.
    """
    seconds = []
    for turn in range(times):
        reporter.note(f"starts {entry.who}, {turn + 1} of {times}")
        with _contender(entry) as contender:
            seconds.append(contender.first_image_s)
    return statistics.median(seconds[1:])


def _scaling(sim: SimParams, task_id: str, quick: bool, reporter: Reporter) -> tuple[list[Scale], float | None]:
    """Steps vectors of 1, 2, 4, ... environments, up to the cores and once beyond, by turns; measures their memory."""
    from stages.sim.memory import private_bytes
    from stages.sim.tasks import load_task
    from stages.sim.vector import VectorEnv
    from stages.types import ACTION_DIM, InitialState

    rounds, decisions = (2, 5) if quick else (7, 20)
    counts = {2**power for power in range(cores().bit_length())} | {cores()} | (set() if quick else {MANY_ENVS})
    draws = np.random.default_rng(0)
    task = load_task(task_id)
    with contextlib.ExitStack() as stack:
        vectors = {}
        for count in sorted(counts):
            reporter.note(f"starts {count} environment{'s' * (count > 1)}")
            vectors[count] = stack.enter_context(VectorEnv(task, count, sim))
            vectors[count].reset([InitialState("official", 0)] * count)
        rates: dict[int, list[float]] = {count: [] for count in vectors}
        with reporter.bar("vectors of environments", rounds * len(vectors)) as advance:
            for _ in range(rounds):
                drawn = draws.uniform(-1.0, 1.0, (decisions, max(vectors), ACTION_DIM))
                for count, vector in vectors.items():
                    actions = drawn[:, :count]  # so that the first environment has the same to do in each
                    began = time.perf_counter()
                    stepped = sum(int(vector.step(action).env_steps.sum()) for action in actions)
                    rates[count].append(stepped / (time.perf_counter() - began))
                    advance(1, "")
        sizes = [private_bytes(worker) for nursery in _children(os.getpid()) for worker in _children(nursery)]
    speeds = {count: statistics.median(values) for count, values in rates.items()}
    scales = [Scale(count, speed, speed / (speeds[1] * min(count, cores()))) for count, speed in speeds.items()]
    return scales, statistics.median(sizes) / 2**20 if sizes else None


def _children(pid: int) -> list[int]:
    """Processes that a process's main thread has started; none where the kernel does not tell."""
    with contextlib.suppress(OSError):
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def _look(sim: SimParams) -> str:
    from stages.sim.assets import resolve_assets

    parts = [f"{sim.image_size} px", "shadows" if sim.shadows else "no shadows", f"{sim.multisampling} samples a pixel"]
    return f"{', '.join(parts)}, {resolve_assets(sim).kind} assets"
