"""What each algorithm takes from params, and what it tells when params do not do what they seem to."""

from pathlib import Path
from typing import Any, get_args

import pytest

from stages.errors import ParamsError
from stages.params import Algo, Params, load_params
from stages.recipe import Recipe, learning_rate, recipe_of, refuse_unusable, remarks


def having(params: Params, **changes: Any) -> Any:
    common = {"clip": 0.2, "ratio": "token", "beta": 0.01, "epochs": 3, "schedule": "step", "kl": "exact"}
    return params.update.model_copy(update={**common, **changes})


def test_in_the_papers_profile_eq_9_is_not_clipped_and_the_others_are() -> None:
    found = {algo: load_params(Path("openvla-7b"), [f"update.algo={algo}"]).update for algo in get_args(Algo)}
    assert {algo: recipe_of(p).epsilon for algo, p in found.items()} == {
        **dict.fromkeys(get_args(Algo), 0.0),
        "ppo": 0.2,
        "grpo": 0.2,
    }
    assert {algo: learning_rate(p) for algo, p in found.items()} == {**dict.fromkeys(get_args(Algo), 1e-5), "ppo": 1e-6}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (["rollout.envs=1"], "rollout.envs = 1, and tgrpo compares"),
        (["rollout.envs=1", "update.algo=ppo"], None),
        (["rollout.temperature=0"], "acts greedily"),
        (["update.algo=ppo", "update.gamma=1"], "update.gamma = 1"),
        (["policy.lora.dropout=0.1"], "policy.lora.dropout = 0.1"),
    ],
)
def test_what_no_update_can_learn_with_is_said_beforehand(changes: list[str], said: str | None) -> None:
    params = load_params(Path("params.yaml"), changes)
    if said is None:
        return refuse_unusable(params)
    with pytest.raises(ParamsError, match=said):
        refuse_unusable(params)


@pytest.mark.parametrize("algo", ["tgrpo", "tgrpo_no_s", "tgrpo_no_t", "grpo"])
def test_the_family_of_tgrpo_follows_params(params: Params, algo: str) -> None:
    assert recipe_of(having(params, algo=algo)) == Recipe("ratio", "token", 0.2, 0.01, 3, "step")
    found = recipe_of(having(params, algo=algo, objective="log_prob", ratio="action"))
    assert found == Recipe("log_prob", "action", 0.0, 0.01, 3, "step")


def test_the_others_take_what_their_papers_have(params: Params) -> None:
    found = {algo: recipe_of(having(params, algo=algo, objective="log_prob")) for algo in get_args(Algo)}
    assert found["ppo"] == Recipe("ratio", "token", 0.2, 0.01, 3, "step")
    assert found["reinforce"] == Recipe("log_prob", "token", 0.0, 0.01, 1, "step")
    assert found["sft"] == Recipe("log_prob", "token", 0.0, 0.0, 3, "step")
    assert found["grape"] == Recipe("log_prob", "action", 0.0, 0.0, 3, "trajectories")
    assert recipe_of(having(params, algo="grape", schedule="group")).schedule == "group"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, None),
        ({"kl": "k1"}, "update.kl=k1 has no gradient in expectation"),
        ({"kl": "k1", "beta": 0.0}, None),
        ({"kl": "k1", "algo": "sft"}, None),
        ({"algo": "reinforce"}, "takes one pass"),
        ({"algo": "reinforce", "epochs": 1}, None),
        ({"objective": "log_prob"}, "update.objective=log_prob with update.epochs=3"),
        ({"objective": "log_prob", "epochs": 1}, None),
        ({"algo": "sft"}, None),
        ({"algo": "grape"}, "an optimiser update per group"),
        ({"algo": "grape", "schedule": "group"}, None),
    ],
)
def test_a_surprise_is_said_in_one_line(params: Params, changes: dict[str, Any], said: str | None) -> None:
    found = remarks(having(params, **{"algo": "tgrpo", **changes}))
    assert len(found) == (said is not None)
    if said:
        assert said in found[0] and "\n" not in found[0]
