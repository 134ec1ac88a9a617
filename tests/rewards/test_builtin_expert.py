"""Built-in rewards of real episodes: the scripted expert of a LIBERO-Object task, scored in the sandbox."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

from stages.rewards.builtin import (
    Thresholds,
    goal_program,
    key_pose_program,
    key_poses_of,
    stage_program,
    stages_of,
)
from stages.rewards.builtin.staged import BONUS
from stages.rewards.program import Reward
from stages.rewards.scorer import Scorer, make_context
from stages.sim.assets import resolve_assets
from stages.sim.env import LiberoEnv
from stages.sim.expert import PickPlaceExpert
from stages.sim.joint_goals import joint_goals
from stages.types import InitialState, Scene, SceneNames
from tests.sim.sample import SIM, TASK

THRESHOLDS = Thresholds()


class Episode(NamedTuple):
    initial: Scene
    scenes: Scene  # (T, ...)
    env_steps: NDArray[np.int16]


def run(env: LiberoEnv, index: int) -> Episode:
    env.reset(InitialState("official", index))
    expert = PickPlaceExpert(env.object_names, env.object_names[0])
    initial, scenes, env_steps, success = env.scene(), [], [], False
    while not success and len(scenes) < TASK.max_env_steps // SIM.action_repeat:
        action, taken = expert.act(env.scene()), 0
        while not success and taken < SIM.action_repeat:
            success, taken = env.step(action), taken + 1
        scenes.append(env.scene())
        env_steps.append(taken)
    assert success
    return Episode(initial, Scene.stack(scenes), np.array(env_steps, np.int16))


@pytest.fixture(scope="module")
def episodes() -> Iterator[tuple[SceneNames, list[Episode]]]:
    env = LiberoEnv(TASK, SIM, resolve_assets(SIM))
    yield env.names, [run(env, index) for index in range(2)]
    env.close()


def scored(reward: Reward, names: SceneNames, episode: Episode) -> tuple[NDArray[np.float32], NDArray[np.int8]]:
    with Scorer(reward) as scorer:
        score = scorer.on(TASK.id, names, TASK.max_env_steps)
        rewards, milestones = score(episode.initial, Scene.stack([episode.scenes]), episode.env_steps[None])
    return rewards[0], milestones[0]


def test_an_expert_passes_every_level_in_order(episodes: tuple[SceneNames, list[Episode]]) -> None:
    names, runs = episodes
    context, joints = make_context(TASK.id, names, TASK.max_env_steps), joint_goals(names.goals)
    for program in (goal_program, stage_program):
        reward = Reward(TASK.id, program(context, THRESHOLDS, joints))
        for episode in runs:
            rewards, milestones = scored(reward, names, episode)
            assert sorted(set(rewards)) == [-2, 2, 4, 8, 10, 12, 16]
            assert (np.diff(rewards) >= 0).all()
            assert (np.diff(milestones) >= 0).all()


def test_key_poses_of_one_start_serve_another(episodes: tuple[SceneNames, list[Episode]]) -> None:
    names, (demonstration, other) = episodes
    context, joints = make_context(TASK.id, names, TASK.max_env_steps), joint_goals(names.goals)
    stages = Reward(TASK.id, stage_program(context, THRESHOLDS, joints))
    _, milestones = scored(stages, names, demonstration)
    poses = tuple(key_poses_of(demonstration.scenes, milestones, names.object_names, stages_of(context, joints)))
    reward = Reward(TASK.id, "", poses)
    context = make_context(TASK.id, names, TASK.max_env_steps, reward)
    reward = Reward(TASK.id, key_pose_program(context, THRESHOLDS, joints), poses)
    rewards, milestones = scored(reward, names, other)
    staged, _ = scored(stages, names, other)
    assert (rewards - staged == 2 * BONUS).any()  # object and hand as in a key pose
    assert set(rewards - staged) <= {0.0, BONUS, 2 * BONUS}
    assert rewards[-1] == 16 == rewards.max()
