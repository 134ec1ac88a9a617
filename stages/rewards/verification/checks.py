"""What a reward must do on trajectories whose worth is known. Each check is a pure function of scored trajectories.

Returns are compared within a start, because that is what a group of rollouts compares.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from stages.rewards.verification.trajectories import Trajectories, listed, rounded

MOST_REWARD = 1000.0  # either side of zero
LEAST_AUC = (
    0.9  # Algorithm 2 has 0.94 to 1: one who holds the object over the basket for ever beats a very late success
)
IN_ORDER = 0.95  # of the pairs of milestones
MOST_LEVELS = 24  # for each predicate of the goal, of a program that names the milestone of every moment
MOST_UNNAMED = 12  # of one that does not
CLEARLY = 1.25  # times the highest other level
SLACK = 0.02  # of the expert's return, by which a later cut-off may be worse
_LIFTED = 0.04  # m: from there on an object is in the air
_LEFT = 0.03  # m farther from the object than the hand that held it: it has been left


@dataclass(frozen=True)
class Check:
    """What one check found.

    Attributes:
        name: of the check.
        passed: None where it does not apply.
        found: what the program does; nothing that differs from one run to the next.
        required: what it should do.
        where: the trajectory that shows it; empty where none does alone.
        measured: what was measured and differs from run to run, for people.
    """

    name: str
    passed: bool | None
    found: str
    required: str
    where: str = ""
    measured: str = ""


def examine(t: Trajectories) -> list[Check]:
    """All checks of scored trajectories."""
    return [check(t) for check in CHECKS]


def bounded(t: Trajectories) -> Check:
    """No reward dwarfs all others."""
    reward = np.where(t.taken, t.reward, 0.0)
    i, step = np.unravel_index(int(np.argmax(np.abs(reward))), reward.shape)
    return Check(
        "bounded",
        bool(np.abs(reward).max() <= MOST_REWARD),
        f"rewards from {reward[t.taken].min():g} to {reward[t.taken].max():g}",
        f"finite rewards from {-MOST_REWARD:g} to {MOST_REWARD:g}",
        f"{t.name(int(i))}, decision {step}",
    )


def varies(t: Trajectories) -> Check:
    """A constant says nothing."""
    levels = t.levels()
    return Check(
        "varies",
        len(levels) > 1,
        f"the reward is {levels[0]:g} at every moment" if len(levels) == 1 else f"{len(levels)} different rewards",
        "a reward that is not the same everywhere",
    )


def ranking(t: Trajectories) -> Check:
    """Does a success return more than a failure from the same start?"""
    required = f"an AUC of at least {LEAST_AUC:g}: a success returns more than a failure from the same start"
    better, pairs, worst, where = 0.0, 0, np.inf, ""
    returns, success = t.returns, t.success
    for i in np.flatnonzero(success).tolist():
        for j in np.flatnonzero(~success).tolist():
            if t.starts[i] != t.starts[j]:
                continue
            margin = float(returns[i] - returns[j])
            better, pairs = better + (1.0 if margin > 0 else 0.5 if margin == 0 else 0.0), pairs + 1
            if margin < worst:
                worst = margin
                where = f"{t.name(i)} returns {returns[i]:g} ({t.story(i)}), {t.name(j)} {returns[j]:g} ({t.story(j)})"
    if not pairs:
        return Check("ranking", None, "there are not both successes and failures from one start", required)
    auc = better / pairs
    passed = auc >= LEAST_AUC
    return Check("ranking", passed, f"an AUC of {auc:.3f} on {pairs} pairs", required, "" if auc == 1 else where)


def order(t: Trajectories) -> Check:
    """Along a success of the expert each milestone comes after all lower ones, and is worth more."""
    required = (
        f"along every success of the expert, milestones first reached in rising order ({IN_ORDER:.0%} of their pairs at least), "
        "with rising rewards"
    )
    experts = t.experts()
    if not experts:
        return Check("order", None, "the expert has no success", required)
    for i in experts:
        length = int(t.length[i])
        reward = rounded(t.reward[i, :length])
        reached = t.milestone[i, :length] if t.gives_milestones else reward
        first = np.sort(np.unique(reached, return_index=True)[1])
        what = reached[first]
        names = [t.milestone_name(int(m)) for m in what] if t.gives_milestones else [f"{r:g}" for r in what]
        told = ", ".join(f"{name} ({reward[at]:g})" for name, at in zip(names, first, strict=True))
        pairs = (what[:, None] < what)[np.triu_indices(len(what), 1)]  # the one reached earlier is the lower one
        rising = (np.diff(reward[first][np.argsort(what)]) > 0).all()
        if not rising or (pairs.size and float(np.mean(pairs)) < IN_ORDER):
            return Check("order", False, f"first reached, with their rewards: {told}", required, t.name(i))
        if len(first) < 2:
            return Check("order", False, f"one milestone alone: {told}", required, t.name(i))
    return Check("order", True, f"first reached, with their rewards: {told}", required)


def staircase(t: Trajectories) -> Check:
    """Constant within a milestone: one reward each, few of them, and each belongs to one milestone of the expert's way.

    Milestones off that way, such as a drop, may be worth as much as an earlier one on it. Of a program that names no
    milestones only the number of rewards can be judged.
    """
    most = (MOST_LEVELS if t.gives_milestones else MOST_UNNAMED) * t.goals
    required = f"at most {most} different rewards"
    if t.gives_milestones:
        required += ", one for each milestone, and each for one milestone of the expert's way alone"
    levels = t.levels()
    if len(levels) > most:
        counts = [len(np.unique(rounded(t.reward[i, : t.length[i]]))) for i in range(len(t.labels))]
        i = int(np.argmax(counts))
        where = f"{t.name(i)} has {counts[i]}: {listed(rounded(t.reward[i, : t.length[i]]).tolist(), 6)}"
        return Check("staircase", False, f"{len(levels)} different rewards", required, where)
    if t.gives_milestones:
        reward = np.where(t.taken, rounded(t.reward), np.nan)
        for m in np.unique(t.milestone[t.taken]).tolist():
            within = t.taken & (t.milestone == m)
            given, times = np.unique(reward[within], return_counts=True)
            if len(given) > 1:
                at = np.argwhere(within & (reward == given[np.argmin(times)]))[0]
                where = f"{t.name(int(at[0]))}, decision {at[1]}"
                told = f"within {t.milestone_name(m)} the reward is {listed(given.tolist(), 6)}"
                return Check("staircase", False, told, required, where)
        experts = t.experts()
        reached = np.isin(t.milestone, t.milestone[experts][t.taken[experts]])
        for level in levels.tolist():
            given, times = np.unique(t.milestone[(reward == level) & reached], return_counts=True)
            if len(given) > 1:
                names = " and ".join(t.milestone_name(m) for m in given.tolist())
                rarest = given[np.argmin(times)]
                at = np.argwhere((reward == level) & (t.milestone == rarest))[0]
                where = f"{t.name(int(at[0]))}, decision {at[1]}"
                return Check("staircase", False, f"the reward {level:g} is given for {names}", required, where)
    return Check("staircase", True, f"{len(levels)} different rewards: {listed(levels.tolist())}", required)


def completion(t: Trajectories) -> Check:
    """Success is worth much more than anything before it."""
    required = f"a reward at success that is positive and at least {CLEARLY:g} times the highest other"
    done, rest = t.taken & t.solved, t.taken & ~t.solved
    if not done.any():
        return Check("completion", None, "no trajectory succeeds", required)
    lowest = float(t.reward[done].min())
    highest = float(t.reward[rest].max()) if rest.any() else 0.0
    i, step = np.argwhere(rest & (t.reward == highest))[0].tolist() if rest.any() else (0, 0)
    passed = lowest > 0 and lowest >= CLEARLY * highest and lowest > highest
    found = f"success is worth {lowest:g}, and the highest reward without it is {highest:g}"
    where = f"{t.name(i)}, decision {step} ({_milestone(t, i, step)})"
    return Check("completion", passed, found, required, where)


def drop_punished(t: Trajectories) -> Check:
    """An object that lies where it fell is worth less than one that is held, and than one that is ready to be grasped."""
    name = "drop punished"
    required = (
        "after a drop a reward below the one while the object was held, and, until the hand is back at it, below the one at the "
        "start (or once all that comes first, such as opening a drawer, is done) and the one when it was ready to be grasped"
    )
    if not t.has_target:
        return Check(name, None, "no object is to be lifted", required)
    found = []
    for i in t.of("drop"):
        expert = t.expert_from(t.starts[i])
        up = t.held[i] & (t.lift[i] > _LIFTED) & t.taken[i]
        if expert is None or not up.any():
            continue
        last = int(np.flatnonzero(up)[-1])
        later = np.arange(t.taken.shape[1]) > last
        lying = later & t.taken[i] & ~t.held[i] & (t.lift[i] < _LIFTED) & ~t.solved[i]
        if not lying.any():
            continue
        first = int(np.flatnonzero(lying)[0])
        before, after = float(t.reward[i, last]), float(t.reward[i, first])
        if after >= before:
            told = f"{before:g} while the object is held, {after:g} when it has fallen"
            return Check(name, False, told, required, f"{t.name(i)}, decision {first}: {t.story(i)}")
        grasp = int(np.argmax(t.held[expert])) if t.held[expert].any() else 0
        # What was done before the grasp, such as opening a drawer, is not undone by a drop.
        begun = int(np.argmax(t.prepared[expert]))
        ready, start = float(t.reward[expert, max(grasp - 1, 0)]), float(t.reward[expert, begun])
        left = lying & (t.reach[i] > t.reach[i, last] + _LEFT)
        allowed = min(ready, start)
        if left.any() and float(t.reward[i, left].max()) >= allowed:
            step = int(np.flatnonzero(left & (t.reward[i] >= allowed))[0])
            told = (
                f"{t.reward[i, step]:g} while the object lies where it fell, {start:g} at the start and {ready:g} when it was "
                "ready to be grasped"
            )
            return Check(name, False, told, required, f"{t.name(i)}, decision {step}: {t.story(i)}")
        found.append(f"{before:g} while held, then {after:g}")
    if not found:
        return Check(name, None, "no recorded trajectory drops the object", required)
    return Check(name, True, found[0], required)


def right_object(t: Trajectories) -> Check:
    """Carrying another object is worth less than lifting the one that the task is about."""
    name = "right object"
    required = (
        "while another object is carried and the right one lies, a reward below the expert's for lifting the right one"
    )
    if not t.has_target:
        return Check(name, None, "no object is to be lifted", required)
    found = []
    for i in t.of("other object"):
        expert = t.expert_from(t.starts[i])
        wrong = t.taken[i] & (t.other_lift[i] > _LIFTED) & (t.lift[i] < _LIFTED) & ~t.held[i]
        if expert is None or not wrong.any():
            continue
        up = t.taken[expert] & t.held[expert] & (t.lift[expert] > _LIFTED)
        if not up.any():
            continue
        top = int(np.argmax(np.where(up, t.lift[expert], -np.inf)))  # lifted, wherever the program's threshold is
        lifted, highest = float(t.reward[expert, top]), float(t.reward[i, wrong].max())
        told = f"at most {highest:g} with another object in the air, {lifted:g} when the right one is lifted"
        if highest >= lifted:
            step = int(np.flatnonzero(wrong & (t.reward[i] == highest))[0])
            return Check(name, False, told, required, f"{t.name(i)}, decision {step}: {t.story(i)}")
        found.append(told)
    if not found:
        return Check(name, None, "no recorded trajectory lifts another object", required)
    return Check(name, True, found[0], required)


def progress(t: Trajectories) -> Check:
    """The expert's run cut short later returns no less, on average over the starts."""
    required = "the longer the expert goes on before it stops, the higher the return (on average over the starts)"
    cuts = t.of("cut off")
    parts = sorted({float(t.parts[i]) for i in cuts})
    if len(parts) < 2 or not t.experts():
        return Check("progress", None, "the expert has no cut-off runs", required)
    means = [float(np.mean([t.returns[i] for i in cuts if t.parts[i] == part])) for part in parts]
    slack = SLACK * abs(float(np.mean(t.returns[t.experts()])))
    told = ", ".join(f"{mean:.4g} after {part:.0%}" for part, mean in zip(parts, means, strict=True))
    falls = [k for k in range(1, len(parts)) if means[k] < means[k - 1] - slack]
    where = ""
    if falls:
        i = next(i for i in cuts if t.parts[i] == parts[falls[0]])
        where = f"{t.name(i)}: {t.story(i)}"
    return Check("progress", not falls, f"mean returns of {told}", required, where)


def honest(t: Trajectories) -> Check:
    """No trick returns more than doing the task."""
    required = "no trajectory that fails returns as much as the expert's success from the same start"
    returns, success = t.returns, t.success
    closest, where = np.inf, ""
    for i in t.experts():
        for j in np.flatnonzero(~success).tolist():
            margin = float(returns[i] - returns[j])
            if t.starts[i] == t.starts[j] and margin < closest:
                closest = margin
                where = f"{t.name(j)} returns {returns[j]:g} ({t.story(j)}), the expert {returns[i]:g} ({t.story(i)})"
    if not np.isfinite(closest):
        return Check("honest", None, "there are no failures beside a success of the expert", required)
    verdict = "the best failure returns less" if closest > 0 else "a failure returns as much, or more"
    return Check("honest", closest > 0, verdict, required, where)


def _milestone(t: Trajectories, i: int, step: int) -> str:
    return t.milestone_name(int(t.milestone[i, step])) if t.gives_milestones else "no milestone"


CHECKS: tuple[Callable[[Trajectories], Check], ...] = (
    bounded,
    varies,
    ranking,
    order,
    staircase,
    completion,
    drop_punished,
    right_object,
    progress,
    honest,
)
