from pathlib import Path

import pytest

from stages.errors import ParamsError
from stages.params import load_params

ROOT = Path(__file__).parents[1]
SHIPPED = ROOT / "params.yaml"


def test_the_shipped_params_load_and_overrides_apply_in_order() -> None:
    params = load_params(SHIPPED, ["advantage.a1=10", "advantage.a1=2.5", "policy.lora.rank=8", "sim.assets_dir=null"])
    assert params.advantage.a1 == 2.5
    assert params.policy.lora.rank == 8
    assert params.sim.assets_dir is None


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("rollout.tempreture=1", "rollout.tempreture is not a known key; did you mean 'temperature'?"),
        ("rolout.envs=1", "there is no section 'rolout'"),
        ("rollout.envs=0", "rollout.envs = 0: input should be greater than or equal to 1"),
        ("rollout.envs=four", "rollout.envs = 'four'"),
        ("rollout.stop=never", "input should be 'first' or 'each'"),
        ("eval.episodes=51", "eval.episodes = 51: input should be less than or equal to 50"),
        ("policy.lora.rnk=8", "policy.lora.rnk is not a known key; did you mean 'rank'?"),
        ("rollout.envs", "expected section.key=value"),
        ("policy.lora.target_modules=*", "'*' is not valid YAML"),
        ("policy.lora.target_modules='*'", "'*' is no regular expression"),
        ("advantage.a1=.inf", "advantage.a1 = inf"),
        ("update.max_off_policy_kl=.inf", "update.max_off_policy_kl = inf"),
        ("update.lr=.nan", "update.lr = nan"),
        ("loop.last=099", "loop.last is 099"),
    ],
)
def test_bad_overrides_are_refused_by_name(override: str, says: str) -> None:
    with pytest.raises(ParamsError) as caught:
        load_params(SHIPPED, [override])
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_key_a_missing_file_and_broken_yaml(tmp_path: Path) -> None:
    with pytest.raises(ParamsError, match="does not exist"):
        load_params(tmp_path / "params.yaml")
    broken = tmp_path / "broken.yaml"
    broken.write_text("seed: [1\n")
    with pytest.raises(ParamsError, match="not valid YAML"):
        load_params(broken)
    lacking = tmp_path / "lacking.yaml"
    lacking.write_text(SHIPPED.read_text().replace("seed: 0", "sead: 0"))
    with pytest.raises(ParamsError, match=r"seed is missing|sead is not a known key"):
        load_params(lacking)


def test_a_broken_chain_of_iterations_is_refused(tmp_path: Path) -> None:
    text = SHIPPED.read_text().replace('{k: "002", prev: "001"}', '{k: "002", prev: "000"}')
    path = tmp_path / "params.yaml"
    path.write_text(text)
    with pytest.raises(ParamsError, match=r"entry 2 of loop.iterations is 000 -> 002, expected 001 -> 002"):
        load_params(path)


def test_a_profile_is_named_without_its_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert load_params(Path("openvla-7b")) == load_params(ROOT / "params" / "openvla-7b.yaml")
    with pytest.raises(ParamsError, match=r"params/openvla-8b.yaml does not exist.*profiles: cpu, openvla-7b"):
        load_params(Path("openvla-8b"))


def test_weights_that_are_asked_for_come_before_those_of_the_task() -> None:
    given = load_params(ROOT / "params" / "openvla-7b.yaml", ["advantage.a1=5"]).advantage
    assert given.weights_of("libero_object/2") == (5, 5)  # table 3's a2 stays
    assert given.weights_of("libero_goal/2") == (5, 0.7)
    own = ["advantage.a1=5", "advantage.per_task={libero_object/2: {a1: 1, a2: 1}}"]
    assert load_params(ROOT / "params" / "openvla-7b.yaml", own).advantage.weights_of("libero_object/2") == (1, 1)


def test_a_task_may_have_weights_of_its_own() -> None:
    """Table 3 of the paper: task 3 of LIBERO-Object has (10, 5), task 5 (0.3, 0.7)."""
    weights = load_params(ROOT / "params" / "openvla-7b.yaml").advantage
    assert weights.weights_of("libero_object/2") == (10, 5)
    assert weights.weights_of("libero_object/4") == weights.weights_of("libero_goal/0") == (0.3, 0.7)


@pytest.mark.parametrize("name", ["libero_object/10", "libero_objects/6", "libero_object", "libero_object/06"])
def test_weights_for_a_task_that_does_not_exist_are_refused(name: str) -> None:
    with pytest.raises(ParamsError, match=f"'{name}' is no task; name it by suite and index"):
        load_params(ROOT / "params.yaml", [f"advantage.per_task={{{name}: {{a1: 1, a2: 1}}}}"])
