"""`tgrpo verify-reward`: a reward + recorded probe trajectories -> a report that says whether it rewards progress.

Nothing is simulated but the recording of the probes, which happens once for a task; every program is scored on the same ones.
"""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np

from stages.errors import ArtifactError, MismatchError
from stages.params import Params
from stages.probes import ensure_probes, probe_groups
from stages.reporting import Reporter
from stages.rewards.interface import Moments
from stages.rewards.program import Reward
from stages.rewards.sandbox import RewardError, milestone_names
from stages.rewards.scorer import make_context, moments
from stages.rewards.verification import Report, Trajectories, make_report, try_program
from stages.rewards.verification.trajectories import Role
from stages.store.artifacts import digest_of, write_json
from stages.store.groups import Group, open_group
from stages.store.provenance import package_versions, read_manifest
from stages.types import Scene

_STILL = 0.01  # m or rad by which a joint may move and stands still
REPORT, PICTURE = "report.json", "verification.png"


def verify_reward(
    reward: Reward,
    params: Params,
    reporter: Reporter | None = None,
    probes: Path | None = None,
    checkpoint: Path | None = None,
) -> Report:
    """Scores the task's probe trajectories with a reward and examines what comes of it.

    Args:
        probes: a folder that `record_probes` wrote; None takes those of params, and records them if there are none yet.
        checkpoint: of a policy whose own episodes shall be among the probes.

    Raises:
        MismatchError: the reward is for another task than the probes.
        ArtifactError: no whole probes.
        TgrpoError: they cannot be recorded, see `record_probes`; or the sandbox does not start.
    """
    folder = probes or ensure_probes(params, checkpoint, reporter)
    manifest = read_manifest(folder, "probes")
    groups = [open_group(path) for path in probe_groups(folder)]
    if not groups:
        raise ArtifactError(f"{folder} holds no groups of probes; remove it, and verify again to record them")
    first = groups[0].attrs
    if reward.task not in ("", first.task):
        raise MismatchError(
            f"{reward.path} is a reward for {reward.task}, and the probes in {folder} are of {first.task}; set task={reward.task}"
        )
    context = make_context(first.task, groups[0].names, first.max_env_steps, reward)
    read = [moments(group.initial_scene(), group.scene(), group["env_steps"][:]) for group in groups]
    everything: Moments = {name: np.concatenate([part[name] for part in read]) for name in read[0]}
    trial = try_program(reward, context, everything, lambda index: _name_moment(groups, index))
    try:
        names = milestone_names(reward.source)
    except RewardError:  # the trial has found that out, and says it
        names = ()
    unscored = [_unscored(group, manifest.details["kinds"], context.target, names) for group in groups]
    scored = None
    if trial.scored is not None:
        ends = np.cumsum([int(t.taken.sum()) for t in unscored])[:-1]
        parts = zip(np.split(trial.scored.reward, ends), np.split(trial.scored.milestone, ends), strict=True)
        scored = [_with_scores(t, *part) for t, part in zip(unscored, parts, strict=True)]
    return make_report(
        first.task,
        reward.digest,
        digest_of(folder),
        trial,
        scored,
        names,
        {**manifest.versions, **package_versions()},
        first.action_repeat,
    )


def write_report(folder: Path, report: Report, params: Params, probes: Path) -> None:
    """Writes report.json and verification.png into a folder; the picture needs the simulator to show the expert.

    Args:
        probes: those that the report is on.

    Raises:
        MismatchError: other probes than the report's.
    """
    from stages.verification_picture import draw_verification

    if digest_of(probes) != report.probes_digest:
        raise MismatchError(f"the report is on other probes than those in {probes}; verify the reward again")
    draw_verification(folder / PICTURE, report, params, [open_group(path) for path in probe_groups(probes)])
    write_json(folder / REPORT, report.to_json())


def read_report(path: Path) -> Report:
    """The report in a file, or in the folder that `write_report` wrote it into.

    Raises:
        ArtifactError: there is none, or it cannot be read.
    """
    path = path / REPORT if path.is_dir() else path
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ArtifactError(f"{path} does not exist; write one with `tgrpo verify-reward`") from None
    except (OSError, ValueError):
        raise ArtifactError(f"{path} cannot be read; verify the reward again with `tgrpo verify-reward`") from None
    return Report.from_json(data, str(path))


def _unscored(group: Group, kinds: dict[str, str], target: str, names: tuple[str, ...]) -> Trajectories:
    """A group's trajectories with what the checks want to know of the world, and no rewards yet."""
    from stages.sim.probe_scripts import CUT_OFFS, DROP, EXPERT, OTHER_OBJECT

    scenes, initial, labels = group.scene(), group.initial_scene(), group.attrs.labels
    roles: dict[str, Role] = {
        EXPERT: "expert",
        DROP: "drop",
        OTHER_OBJECT: "other object",
        **dict.fromkeys(CUT_OFFS, "cut off"),
    }
    o = group.names.object_names.index(target) if target else None
    lift = scenes.object_pos[..., 2] - initial.object_pos[:, 2]
    nothing = np.zeros(group["mask"].shape)
    return Trajectories(
        labels=labels,
        kinds=tuple(kinds.get(label, "either") for label in labels),
        roles=tuple(roles.get(label, "") for label in labels),
        parts=np.array([CUT_OFFS.get(label, 1.0) for label in labels]),
        starts=(group.attrs.initial_state,) * len(labels),
        taken=group["mask"][:],
        reward=nothing,
        milestone=nothing.astype(np.int64),
        solved=scenes.success,
        prepared=_prepared(scenes, scenes.grasped[..., o]) if o is not None else nothing.astype(np.bool_),
        held=scenes.grasped[..., o] if o is not None else nothing.astype(np.bool_),
        lift=lift[..., o] if o is not None else nothing,
        other_lift=np.delete(lift, o, axis=-1).max(axis=-1, initial=0.0) if o is not None else nothing,
        reach=_reach(scenes, o) if o is not None else nothing,
        horizon=-(-group.attrs.max_env_steps // group.attrs.action_repeat),
        goals=len(group.names.goals),
        milestone_names=names,
        has_target=o is not None,
    )


def _prepared(scenes: Scene, held: np.ndarray) -> np.ndarray:
    """Whether joints and predicates are as at the trajectory's first grasp, (N, T); true throughout where there is none."""
    rows, first = np.arange(len(held)), held.argmax(axis=1)
    moved = np.abs(scenes.joint_pos - scenes.joint_pos[rows, first][:, None]) > _STILL
    changed = scenes.goal != scenes.goal[rows, first][:, None]
    return ~(moved.any(axis=-1) | changed.any(axis=-1)) | ~held.any(axis=1, keepdims=True)


def _reach(scenes: Scene, o: int) -> np.ndarray:
    return np.linalg.norm(scenes.ee_pos - scenes.object_pos[..., o, :], axis=-1)


def _with_scores(t: Trajectories, reward: np.ndarray, milestone: np.ndarray) -> Trajectories:
    rewards, milestones = np.zeros(t.taken.shape), np.zeros(t.taken.shape, np.int64)
    rewards[t.taken], milestones[t.taken] = reward, milestone
    return replace(t, reward=rewards, milestone=milestones)


def _name_moment(groups: list[Group], index: int) -> str:
    """`decision 12 of 'drop' from sampled/5`, of the moments in the order of `scorer.moments`."""
    for group in groups:
        at = np.argwhere(group["mask"][:])
        if index < len(at):
            g, step = at[index].tolist()
            return f"decision {step} of '{group.attrs.labels[g]}' from {group.attrs.initial_state}"
        index -= len(at)
    return "no recorded moment"
