"""Evaluations on the real simulator: on which states, the same whatever runs beside, and what a crash does to them."""

import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from stages import evaluate
from stages.advantage import weigh_group
from stages.compare import compare
from stages.describe import describe
from stages.episodes import Episode, Plan, TooManyCrashes, play
from stages.errors import ArtifactError, MismatchError, SimulatorError
from stages.evaluate import (
    evaluate_checkpoints,
    evaluate_policy,
    plan_episodes,
    rate_line,
    start_states,
    summarise,
    validate,
    write_evaluation,
)
from stages.inspect import inspect
from stages.params import Params, load_params
from stages.rewards.scorer import Scorer
from stages.rollout import group_inputs
from stages.sampling import Wanted, sample_groups
from stages.seeding import derive_seed
from stages.store.episodes import open_episodes
from stages.store.groups import open_group
from stages.train import train
from stages.types import InitialState
from stages.update import update
from stages.workspace import open_env, open_policy, read_checkpoint, task_reward
from tests.conftest import ROOT, Run

if TYPE_CHECKING:
    from stages.policy.policy import VLAPolicy
    from stages.sim.vector import VectorEnv

LIMIT = 12  # environment steps: 3 decisions
PARAMS = load_params(
    ROOT / "params.yaml",
    [
        "eval.episodes=2",
        "eval.envs=2",
        "eval.videos=0",
        f"eval.max_env_steps={LIMIT}",
        "sim.max_restarts=0",
        "sim.settle_steps=2",
        "train.validation.episodes=3",
        "train.validation.temperature=1.0",
    ],
)


@pytest.fixture(scope="module")
def policy() -> "VLAPolicy":
    return open_policy(PARAMS, ROOT / PARAMS.policy.base_of(PARAMS.task))


@pytest.fixture(scope="module")
def env() -> Iterator["VectorEnv"]:
    with open_env(PARAMS, 2) as env:
        yield env


@pytest.fixture(scope="module")
def scorer(env: "VectorEnv") -> Iterator[Scorer]:
    with Scorer(task_reward(PARAMS, env)) as scorer:
        yield scorer


def of_eval(**changed: Any) -> Params:
    return PARAMS.model_copy(update={"eval": PARAMS.eval.model_copy(update=changed)})


@pytest.fixture
def play_plans(policy: "VLAPolicy", env: "VectorEnv", scorer: Scorer) -> Callable[..., list[Episode]]:
    def run(plans: list[Plan], temperature: float = 1.0) -> list[Episode]:
        return play(policy, env, scorer, plans, temperature, LIMIT)

    return run


def equal(a: Episode, b: Episode) -> None:
    """To the last bit."""
    assert (a.start, a.repeat, a.seed, a.success, a.crashed) == (b.start, b.repeat, b.seed, b.success, b.crashed)
    np.testing.assert_array_equal(a.initial_state, b.initial_state)
    assert a.decisions.keys() == b.decisions.keys()
    for name, values in a.decisions.items():
        np.testing.assert_array_equal(values, b.decisions[name], err_msg=name)


class Killer:
    """A policy during whose decisions some environments' processes are killed: {number of the decision: environment}."""

    def __init__(self, policy: "VLAPolicy", env: "VectorEnv | None", kills: dict[int, int]) -> None:
        self.policy, self.env, self.kills, self.decisions = policy, env, kills, 0

    def act(self, *args: Any, **named: Any) -> Any:
        self.decisions += 1
        if self.decisions in self.kills:
            assert self.env is not None
            worker = self.env._slots[self.kills[self.decisions]].worker
            assert worker is not None
            os.kill(worker.pid, signal.SIGKILL)
        return self.policy.act(*args, **named)


def test_official_states_are_evaluated_and_validation_states_are_no_other_stream() -> None:
    assert start_states("official", 3, seed=5) == [InitialState("official", index) for index in range(3)]
    validation = start_states("validation", 50, seed=5)
    assert len(set(validation)) == 50 and {start.source for start in validation} == {"sampled"}
    assert validation[:3] == start_states("validation", 3, seed=5)
    assert not set(validation) & set(start_states("validation", 50, seed=6))
    training = {
        InitialState("sampled", derive_seed(5, *labels))
        for labels in [
            *(("start", iteration, index) for iteration in range(40) for index in range(10)),
            *(("demo", index) for index in range(200)),
        ]
    }
    assert not training & set(validation)


def test_every_repeat_of_a_state_has_a_seed_of_its_own() -> None:
    starts = start_states("official", 2, seed=0)
    plans = plan_episodes(starts, 3, seed=0)
    assert [(plan.start.index, plan.repeat) for plan in plans] == [(0, 0), (1, 0), (0, 1), (1, 1), (0, 2), (1, 2)]
    assert len({plan.seed for plan in plans}) == 6
    # The seeds of a state do not depend on which others are evaluated.
    assert plan_episodes(starts[1:], 1, seed=0) == [plans[1]]


def test_an_episode_is_the_same_whatever_runs_beside_it(play_plans: Callable[..., list[Episode]]) -> None:
    plans = plan_episodes(start_states("official", 3, seed=0), 1, seed=0)
    episodes = play_plans(plans)
    other = play_plans([plans[2], plans[1], plans[0]])
    for episode, again in zip(episodes, other[::-1], strict=True):
        equal(episode, again)
    equal(episodes[1], play_plans([plans[1]])[0])
    assert (episodes[0].decisions["action_token"] != episodes[1].decisions["action_token"]).any()

    # Another seed acts otherwise from the same state; greedily, no seed matters.
    (reseeded,) = play_plans([Plan(plans[1].start, 0, seed=1)])
    np.testing.assert_array_equal(reseeded.initial_state, episodes[1].initial_state)
    assert (reseeded.decisions["action_token"] != episodes[1].decisions["action_token"]).any()
    greedy = play_plans([Plan(plans[1].start, 0, seed) for seed in (0, 1)], temperature=0.0)
    for name, values in greedy[0].decisions.items():
        np.testing.assert_array_equal(values, greedy[1].decisions[name])


def test_validation_is_repeatable_and_on_its_own_states(policy: "VLAPolicy", env: "VectorEnv", scorer: Scorer) -> None:
    summary = validate(policy, env, scorer, PARAMS)
    assert (summary.episodes, summary.starts, summary.temperature, summary.repeats) == (3, "validation", 1.0, 1)
    assert validate(policy, env, scorer, PARAMS) == summary
    # The same as an evaluation on these states, so that what the guard saw can be looked at.
    episodes = evaluate_policy(policy, env, scorer, of_eval(starts="validation", episodes=3, temperature=1.0))
    assert summarise(episodes, 1.0) == summary
    # Greedily, a repeat would be the same episode again.
    assert len(evaluate_policy(policy, env, scorer, of_eval(episodes=1, repeats=3, temperature=0.0))) == 1


def test_a_crash_is_counted_apart_and_changes_no_other_episode(
    policy: "VLAPolicy", env: "VectorEnv", scorer: Scorer, tmp_path: Path
) -> None:
    params = of_eval(episodes=5, repeats=2, temperature=1.0)
    undisturbed = evaluate_policy(policy, env, scorer, params)
    # In the second decision of the third and fourth episode, environment 1 plays the fourth.
    episodes = evaluate_policy(Killer(policy, env, {5: 1}), env, scorer, params)  # type: ignore[arg-type]
    assert [episode.crashed for episode in episodes] == [number == 3 for number in range(10)]
    crashed = episodes.pop(3)
    assert not crashed.success and len(crashed.decisions["reward"]) == 1
    reference = undisturbed.pop(3)
    np.testing.assert_array_equal(crashed.decisions["sim_state"], reference.decisions["sim_state"][:1])
    for episode, expected in zip(episodes, undisturbed, strict=True):
        equal(episode, expected)

    episodes.insert(3, crashed)
    summary = summarise(episodes, 1.0)
    assert (summary.episodes, summary.crashes, summary.repeats) == (9, 1, 2)
    line = rate_line(asdict(summary))
    assert line.startswith("0/9 = 0% (95%") and line.endswith(", 1 crashed")
    base = ROOT / PARAMS.policy.base_of(PARAMS.task)
    handle = write_evaluation(tmp_path / "e", base, episodes, scorer.reward, params)
    assert (handle.extra["crashes"], handle.extra["episodes"], handle.extra["starts"]) == (1, 9, "official")
    stored = open_episodes(tmp_path / "e")
    assert stored["crashed"][:].tolist() == [number == 3 for number in range(10)]
    assert stored["length"][:].tolist() == [1 if number == 3 else 3 for number in range(10)]
    np.testing.assert_array_equal(stored.states(7)[1:], episodes[7].states)
    np.testing.assert_array_equal(stored.states(7)[0], episodes[7].initial_state)
    np.testing.assert_array_equal(stored["seed"][:], [episode.seed for episode in episodes])
    assert stored.attrs.max_env_steps == LIMIT and stored.attrs.repeats == 2
    assert stored.attrs.params["reward"] == scorer.reward.to_json()


def test_too_many_crashes_end_it_and_leave_what_there_is(
    policy: "VLAPolicy", tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killer = Killer(policy, None, {4: 0})

    def opened(params: Params, num_envs: int) -> "VectorEnv":
        killer.env = open_env(params, num_envs)
        return killer.env

    monkeypatch.setattr(evaluate, "open_env", opened)
    monkeypatch.setattr(evaluate, "open_policy", lambda *_: killer)
    base = ROOT / PARAMS.policy.base_of(PARAMS.task)
    with pytest.raises(TooManyCrashes) as caught:
        list(evaluate_checkpoints(of_eval(episodes=4), [base], out=tmp_path / "0001"))
    message = str(caught.value)
    assert message.startswith("the simulator crashed in 1 of 4 episodes, more than 10%") and "\n" not in message
    kept = tmp_path / "0001.incomplete"
    assert message.endswith(f"the episodes so far are kept in {kept}, marked incomplete")
    assert not (tmp_path / "0001").exists()
    assert describe(kept).extra["incomplete"] and describe(kept).extra["crashes"] == 1
    assert open_episodes(kept, incomplete=True)["crashed"][:].tolist() == [False, False, True]
    with pytest.raises(ArtifactError, match="is incomplete"):
        open_episodes(kept)


def test_a_failure_that_is_no_crash_of_an_environment_ends_the_evaluation(
    policy: "VLAPolicy", env: "VectorEnv", scorer: Scorer
) -> None:
    class Diverged:
        def act(self, *args: Any, **named: Any) -> Any:
            acted = policy.act(*args, **named)
            acted.action[:] = np.nan
            return acted

    with pytest.raises(SimulatorError, match="a policy that diverged"):
        evaluate_policy(Diverged(), env, scorer, PARAMS)  # type: ignore[arg-type]


def trained_on(path: Path, states: list[str]) -> Path:
    """A copy of the embedded checkpoint that says it was trained on these states."""
    shutil.copytree(ROOT / PARAMS.policy.base_of(PARAMS.task), path)
    record = json.loads((path / "tgrpo.json").read_text())
    record["details"]["trained_on"] = states
    (path / "tgrpo.json").write_text(json.dumps(record))
    return path


def test_a_checkpoint_is_not_evaluated_on_states_it_was_trained_on(tmp_path: Path) -> None:
    validation = start_states("validation", 2, PARAMS.seed)[1]
    cheat = trained_on(tmp_path / "cheat", ["official/1", "sampled/9"])
    with pytest.raises(
        MismatchError, match=r"trained on 1 of the 2 start states .* official/1 first.*--starts validation"
    ):
        next(evaluate_checkpoints(PARAMS, [cheat], out=tmp_path / "e"))
    other = trained_on(tmp_path / "other", [str(validation)])
    with pytest.raises(MismatchError, match=f"{validation} first.*--starts official"):
        next(evaluate_checkpoints(of_eval(starts="validation"), [other], out=tmp_path / "e"))
    assert not (tmp_path / "e").exists()


def test_a_step_from_an_official_state_is_remembered_by_all_later_checkpoints(
    env: "VectorEnv", scorer: Scorer, tmp_path: Path
) -> None:
    """No command samples from an official state, but a group can be made to say so by hand."""
    params = PARAMS.model_copy(
        update={"rollout": PARAMS.rollout.model_copy(update={"envs": 2, "groups": 1, "max_env_steps": 8})}
    )
    checkpoint = ROOT / params.policy.base_of(params.task)
    known = set(read_checkpoint(checkpoint).details.get("trained_on", []))
    for k in (1, 2):
        group, weighed, following = (tmp_path / f"{name}{k}" for name in ("group", "weighed", "checkpoint"))
        wanted = [Wanted(0, group, group_inputs(group, checkpoint, None))]
        list(sample_groups(open_policy(params, checkpoint), env, scorer, params, wanted, iteration=k))
        if k == 1:
            root = json.loads((group / "zarr.json").read_text())
            root["attributes"]["tgrpo"]["initial_state"] = "official/1"
            (group / "zarr.json").write_text(json.dumps(root))
        handle = weigh_group(open_group(group), params, weighed)
        update(params, [handle], out=following)
        known.add(open_group(group).attrs.initial_state)
        checkpoint = following
    assert read_checkpoint(checkpoint).details["trained_on"] == sorted(known)
    assert {state.split("/")[0] for state in known} == {"official", "sampled"}
    assert any("1 official" in line and line.endswith("start states") for line in inspect(checkpoint, None, None, dict))
    with pytest.raises(MismatchError, match=r"trained on 1 of the 2 start states .* official/1 first"):
        next(evaluate_checkpoints(params, [checkpoint], out=tmp_path / "e"))
    with pytest.raises(MismatchError, match=r"trained on 1 of the 2 start states .* official/1 first"):
        train(params, checkpoint, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_command_line(tgrpo_here: Callable[..., Run], project: Path) -> None:
    sets = ["--set", f"eval.max_env_steps={LIMIT}", "--set", "sim.settle_steps=2", "--set", "eval.videos=1"]
    done = tgrpo_here("eval", "--episodes", 2, "--temperature", 1, "--repeats", 2, "--starts", "validation", *sets)
    assert done.code == 0, done.err
    (handle,) = done.handles
    assert (handle["episodes"], handle["repeats"], handle["starts"], handle["crashes"]) == (4, 2, "validation", 0)
    evaluation = project / "data/evals/0001"
    assert len(list(evaluation.glob("sampled-*-failure.mp4"))) == 1
    (row,) = compare([(evaluation, evaluation)]).rows
    assert (row.pairs, row.states, row.difference, row.p) == (4, 2, 0.0, 1.0)
    bad = tgrpo_here("eval", "--starts", "training")
    assert bad.code == 2 and "eval.starts" in bad.err and len(bad.err.strip().splitlines()) == 1
