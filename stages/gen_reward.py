"""`tgrpo gen-reward`: a task -> its reward as an artifact, here the paper's Algorithm 2 by the built-in generator."""

from pathlib import Path

from stages.describe import describe
from stages.params import Params
from stages.reward_files import builtin_reward, write_reward
from stages.rewards.interface import Context
from stages.store.artifacts import atomic_directory
from stages.store.handles import Handle
from stages.store.provenance import Manifest, write_manifest
from stages.workspace import next_path, task_objects


def gen_reward(params: Params, out: Path | None = None, overwrite: bool = False) -> Handle:
    """Writes the built-in reward for the params' task.

    Raises:
        TaskError: no such task.
        UsageError: a task that the built-in program is not for.
        ParamsError: no such program.
    """
    from stages.sim.goals import parse_goal
    from stages.sim.tasks import load_task, task_object_names

    task = load_task(params.task)
    objects = task_object_names(task)
    task_objects(objects)
    context = Context(task.id, objects, (), (), (), parse_goal(task), task.max_env_steps)
    reward = builtin_reward(params.gen_reward, context)
    out = out or next_path("rewards")
    with atomic_directory(out, overwrite=overwrite) as folder:
        write_reward(folder, reward)
        write_manifest(
            folder,
            Manifest(
                kind="reward",
                params=params.model_dump(include={"gen_reward"}),
                seed=params.seed,
                details={"task": task.id, "instruction": task.language, "digest": reward.digest},
            ),
        )
    return describe(out)
