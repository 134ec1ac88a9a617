"""`tgrpo gen-reward`: a task -> its reward as an artifact, here the paper's Algorithm 2 from the built-in library."""

from pathlib import Path

from stages.describe import describe
from stages.params import Params
from stages.rewards.spec import RewardSpec, program_source
from stages.store.artifacts import atomic_directory
from stages.store.handles import Handle
from stages.store.provenance import Manifest, write_manifest
from stages.workspace import next_path, task_objects


def gen_reward(params: Params, out: Path | None = None, overwrite: bool = False) -> Handle:
    """Writes the built-in reward for the params' task: the spec in the manifest, the program's source beside it to read.

    Raises:
        TaskError: no such task.
        UsageError: a task that the built-in program is not for.
        ParamsError: no such program.
    """
    from stages.sim.tasks import load_task, task_object_names

    task = load_task(params.task)
    spec = RewardSpec.builtin(params.gen_reward, *task_objects(task_object_names(task)))
    out = out or next_path("rewards")
    with atomic_directory(out, overwrite=overwrite) as folder:
        (folder / "reward.py").write_text(program_source(spec.program))
        write_manifest(
            folder,
            Manifest(
                kind="reward",
                params=params.model_dump(include={"gen_reward"}),
                seed=params.seed,
                details={"task": task.id, "instruction": task.language, "spec": spec.to_json()},
            ),
        )
    return describe(out)
