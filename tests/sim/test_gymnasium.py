"""The Gymnasium environments: they pass Gymnasium's own checker, equal each other, and equal its own vector environments."""

import warnings
from collections.abc import Iterator
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env, data_equivalence
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from stages.errors import UsageError
from stages.params import load_params
from stages.sim.assets import resolve_assets
from stages.sim.env import LiberoEnv
from stages.sim.expert import PickPlaceExpert
from stages.sim.gymnasium_envs import BENCHMARK, DEMO, ID, LiberoGymEnv, LiberoGymVectorEnv
from stages.types import InitialState
from tests.conftest import ROOT
from tests.sim.sample import TASK

SMALL: dict[str, Any] = {"image_size": 48, "max_env_steps": 12}  # three steps of four environment steps


@pytest.fixture(scope="module")
def single() -> Iterator[LiberoGymEnv]:
    env = LiberoGymEnv(**SMALL)
    yield env
    env.close()


@pytest.fixture(scope="module")
def vector() -> Iterator[LiberoGymVectorEnv]:
    envs = gymnasium.make_vec(ID, num_envs=2, vectorization_mode="vector_entry_point", render_mode="rgb_array", **SMALL)
    assert isinstance(envs, LiberoGymVectorEnv)
    yield envs
    envs.close()


def actions(steps: int, num_envs: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.random.default_rng(5).uniform(-1, 1, (steps, num_envs, 7)).astype(np.float32)


def test_gymnasiums_checker_has_nothing_to_say() -> None:
    env = gymnasium.make(ID, render_mode="rgb_array", **SMALL)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(env.unwrapped)
    env.close()


def test_it_is_the_environment_underneath(single: LiberoGymEnv) -> None:
    sim = DEMO.model_copy(update={"image_size": 48})
    env = LiberoEnv(TASK, sim, resolve_assets(sim))
    env.reset(InitialState("official", 3))
    observation, info = single.reset(options={"initial_state": "official/3"})
    for step, (action,) in enumerate(actions(3, 1)):
        assert observation in single.observation_space
        np.testing.assert_array_equal(observation["image"], env.render())
        np.testing.assert_array_equal(observation["proprio"], env.proprio())
        np.testing.assert_array_equal(info["state"], env.state())
        assert (info["env_steps"], info["success"]) == (4 * step, False)
        for _ in range(4):
            env.step(action.astype(float))
        observation, reward, terminated, truncated, info = single.step(action)
        assert (reward, terminated, truncated) == (0.0, False, step == 2)
    assert single.reset()[1]["initial_state"].startswith("sampled/")
    env.close()


def test_a_seed_decides_the_starts(single: LiberoGymEnv) -> None:
    def starts(seed: int) -> list[tuple[str, bytes]]:
        infos = [single.reset(seed=seed)[1], single.reset()[1], single.reset()[1]]
        return [(info["initial_state"], info["state"].tobytes()) for info in infos]

    first = starts(11)
    assert len(set(first)) == 3 and starts(11) == first and not set(starts(12)) & set(first)
    name, state = first[1]
    assert single.reset(options={"initial_state": name})[1]["state"].tobytes() == state


def test_success_is_the_reward_and_the_end() -> None:
    env = LiberoGymEnv(image_size=16)
    env.reset(options={"initial_state": "official/0"})
    expert = PickPlaceExpert(env.libero.object_names, *env.libero.object_names[:2])
    for step in range(70):  # noqa: B007
        _, reward, terminated, truncated, info = env.step(expert.act(env.libero.scene()))
        assert reward == float(terminated) == float(info["success"]) and not truncated
        if terminated:
            break
    assert terminated and 4 * step < info["env_steps"] <= 4 * (step + 1) <= 280
    env.close()


def test_the_vector_equals_gymnasiums_own_one_of_single_environments(vector: LiberoGymVectorEnv) -> None:
    """Five-tuples, infos and their masks, seeds, ends and automatic resets, over two episodes."""
    reference = SyncVectorEnv([lambda: LiberoGymEnv(**SMALL)] * 2)
    assert vector.observation_space == reference.observation_space
    assert vector.action_space == reference.action_space
    assert vector.single_observation_space == reference.single_observation_space
    assert vector.metadata["autoreset_mode"] == reference.metadata["autoreset_mode"] == AutoresetMode.NEXT_STEP
    seen, expected = vector.reset(seed=3), reference.reset(seed=3)
    assert data_equivalence(_plain(seen), _plain(expected), exact=True)
    ends = []
    for action in actions(6, 2):
        seen, expected = vector.step(action), reference.step(action)  # type: ignore[assignment]
        assert data_equivalence(_plain(seen), _plain(expected), exact=True)
        assert seen[0] in vector.observation_space
        ends.append(seen[3].tolist())  # type: ignore[misc]
    assert ends == [[False] * 2, [False] * 2, [True] * 2, [False] * 2, [False] * 2, [False] * 2]
    mask = np.array([False, True])
    again = [envs.reset(seed=[None, 8], options={"reset_mask": mask.copy()}) for envs in (vector, reference)]
    assert data_equivalence(_plain(again[0]), _plain(again[1]), exact=True)
    for action in actions(2, 2):  # now they are out of step: one ends and starts again while the other goes on
        seen, expected = vector.step(action), reference.step(action)  # type: ignore[assignment]
        assert data_equivalence(_plain(seen), _plain(expected), exact=True)
    assert seen[4]["env_steps"].tolist() == [0, 8]  # type: ignore[misc]
    reference.close()


def _plain(given: tuple[Any, ...]) -> tuple[Any, ...]:
    """With the names of initial states as lists, which the comparison can tell apart."""
    *rest, infos = given
    return *rest, {name: value.tolist() if value.dtype == object else value for name, value in infos.items()}


def test_the_vectors_shapes_dtypes_and_frames(vector: LiberoGymVectorEnv) -> None:
    observation, infos = vector.reset(seed=0, options={"initial_state": "official/1"})
    assert infos["initial_state"].tolist() == ["official/1"] * 2
    np.testing.assert_array_equal(infos["state"][0], infos["state"][1])
    observation, reward, terminated, truncated, infos = vector.step(actions(1, 2)[0])
    assert observation["image"].shape == (2, 48, 48, 3) and observation["image"].dtype == np.uint8
    assert observation["proprio"].shape == (2, 8) and observation["proprio"].dtype == np.float32
    assert [array.shape for array in (reward, terminated, truncated)] == [(2,)] * 3
    assert [array.dtype for array in (reward, terminated, truncated)] == [np.float64, np.bool_, np.bool_]
    frames = vector.render()
    assert frames is not None and len(frames) == 2
    np.testing.assert_array_equal(frames[1], observation["image"][1])
    assert vector.metadata["render_fps"] == 5.0  # 20 environment steps a second, four a step


def test_profiles() -> None:
    shipped = load_params(ROOT / "params.yaml").sim
    assert shipped == DEMO
    assert shipped.benchmark().model_copy(update={"assets": "libero"}) == BENCHMARK
    env = LiberoGymEnv(profile="benchmark", assets="primitive", image_size=32)
    assert env.observation_space["image"].shape == (32, 32, 3)  # type: ignore[index]
    env.reset(seed=0)
    _, _, _, _, info = env.step(np.zeros(7, np.float32))
    assert info["env_steps"] == 1
    env.close()


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"task": "libero_object/10"}, "0 to 9"),
        ({"profile": "fast"}, "no profile 'fast'; known are demo, benchmark"),
        ({"image_size": 8}, "image_size is 8: .*16"),
        ({"action_repeat": 0}, "action_repeat is 0: .*1"),
        ({"max_env_steps": 0}, "max_env_steps is 0; expected at least 1"),
        ({"render_mode": "human"}, "no render_mode 'human'"),
    ],
)
def test_a_wrong_argument_is_one_line(wrong: dict[str, Any], says: str) -> None:
    for make in (LiberoGymEnv, LiberoGymVectorEnv):
        with pytest.raises(UsageError, match=says) as caught:
            make(**wrong)
        assert "\n" not in str(caught.value)


def test_wrong_use(single: LiberoGymEnv, vector: LiberoGymVectorEnv) -> None:
    for name in ("official", "official/x", "sampled/-1", "sampled/4294967296", "other/1", 3):
        with pytest.raises(UsageError, match=r"is no initial state; expected official/INDEX"):
            single.reset(options={"initial_state": name})
    with pytest.raises(UsageError, match="found 3 seeds for 2 environments"):
        vector.reset(seed=[1, 2, 3])
    for mask in (np.zeros(2, np.bool_), np.ones(3, np.bool_), np.ones(2)):
        with pytest.raises(UsageError, match="expected a boolean array of shape"):
            vector.reset(options={"reset_mask": mask})
    with pytest.raises(UsageError, match="num_envs is 0"):
        LiberoGymVectorEnv(0)
    fresh = LiberoGymVectorEnv(2, **SMALL)
    with pytest.raises(gymnasium.error.ResetNeeded):
        fresh.step(np.zeros((2, 7)))
    with pytest.raises(gymnasium.error.ResetNeeded):
        fresh.reset(options={"reset_mask": np.array([True, False])})
    fresh.close()
