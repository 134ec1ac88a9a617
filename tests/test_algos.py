"""One real update of every `update.algo`, from a group on disk to the next checkpoint: what succeeded becomes likelier."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from stages.advantage import weigh_group
from stages.decisions import gather_decisions
from stages.errors import ArtifactError, MismatchError
from stages.history import UPDATE_COLUMNS, read_history
from stages.learner import Learner
from stages.params import Algo, Params
from stages.policy.policy import VLAPolicy
from stages.preferences import Preferences
from stages.seeding import derive_seed
from stages.store.groups import open_group, write_group
from stages.store.handles import Handle
from stages.store.provenance import reference
from stages.update import CRITIC, open_learner, open_pair, update

sys.path.insert(0, str(Path(__file__).parent / "store"))
from group_sample import ATTRS, S, decision, given, scene

LENGTHS = np.array([6, 8, 8])
REWARD = np.array([4.0, 2.0, -2.0])  # of each trajectory at every step; the first ends in success, at 16


@dataclass(frozen=True)
class Sampled:
    """A group that the embedded policy sampled, of random images, and what it thought of its tokens."""

    path: Path
    image: np.ndarray  # (G, T, H, W, 3)
    proprio: np.ndarray
    token: np.ndarray

    def log_prob(self, policy: VLAPolicy) -> np.ndarray:
        """(G,) mean log-prob of a decision of each trajectory."""
        with torch.no_grad():
            scored = [
                policy.log_prob(self.image[g, :n], self.proprio[g, :n], ATTRS.instruction, self.token[g, :n])
                for g, n in enumerate(LENGTHS)
            ]
        return np.array([scores.log_prob.sum(-1).mean().item() for scores in scored])


@pytest.fixture(scope="module")
def sampled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sampled]:
    from stages.params import load_params
    from tests.conftest import ROOT

    params = load_params(ROOT / "params.yaml")
    base = ROOT / params.policy.base_of(params.task)
    policy, rng, generator = VLAPolicy.load(base, "cpu"), np.random.default_rng(0), torch.Generator().manual_seed(0)
    at = tmp_path_factory.mktemp("algos") / "group.zarr"
    size, trajectories, longest = policy.config.image_sizes[0], len(LENGTHS), LENGTHS.max()
    image = rng.integers(256, size=(trajectories, longest, size, size, 3), dtype=np.uint8)
    proprio = rng.normal(size=(trajectories, longest, 8)).astype(np.float32)
    token = np.zeros((trajectories, longest, 7), np.int64)
    reward = REWARD[:, None] + (np.arange(longest) == 3)
    reward[0, LENGTHS[0] - 1] = 16.0
    attrs = replace(ATTRS, image_size=size, inputs={"checkpoint": reference(base, at)})
    with write_group(
        at,
        attrs,
        trajectories=trajectories,
        initial_state=rng.normal(size=S),
        initial_scene=scene(rng=rng),
        score=given(reward, np.arange(longest) % 5),
    ) as writer:
        for t in range(longest):
            acted = policy.act(image[:, t], proprio[:, t], attrs.instruction, 1.0, generator)
            token[:, t] = acted.tokens
            success = np.array([t == LENGTHS[0] - 1, False, False])
            step = decision(t) | {
                "mask": t < LENGTHS,
                "scene": scene(trajectories, rng=rng, success=success),
                "image": image[:, t],
                "proprio": proprio[:, t],
                "action_token": acted.tokens,
                "log_prob": acted.log_prob,
                "entropy": acted.entropy,
            }
            writer.append(**step)
    yield Sampled(at, image, proprio, token)


def having(params: Params, algo: str, **changes: Any) -> Params:
    given = {"algo": algo, "schedule": "minibatch", "minibatch": 6, "epochs": 4, "lr": 1e-3, "beta": 0.0, **changes}
    return params.model_copy(
        update={
            "advantage": params.advantage.model_copy(update={"min_return_std": 0.0}),
            "update": params.update.model_copy(update=given),
            "policy": params.policy.model_copy(update={"threads": 1}),  # two wait for each other on a busy machine
        }
    )


def run(params: Params, sampled: Sampled, folder: Path, checkpoint: Path | None = None) -> Handle:
    """`tgrpo advantage` and `tgrpo update`, but for the command line."""
    weighed = weigh_group(open_group(sampled.path), params, folder / "advantages.zarr")
    return update(params, [weighed], checkpoint, folder / "checkpoint")


@pytest.mark.parametrize("algo", get_args(Algo))
def test_an_update_makes_what_succeeded_likelier_than_what_failed(
    params: Params, embedded: Path, sampled: Sampled, tmp_path: Path, algo: str
) -> None:
    before = sampled.log_prob(VLAPolicy.load(embedded, "cpu"))
    handle = run(having(params, algo), sampled, tmp_path)
    change = sampled.log_prob(VLAPolicy.load(handle.path, "cpu")) - before
    assert change[0] > 0 and change[0] > change[2] + 0.1
    assert (tmp_path / "checkpoint" / CRITIC).exists() == (algo == "ppo")
    (row,) = read_history(handle.path)
    of_its_own = {"ppo": {"value_loss", "explained_variance"}, "grape": {"preference_accuracy"}}.get(algo, set())
    missing = {name for name in UPDATE_COLUMNS if np.isnan(row[name])}
    assert missing == {"kl", "value_loss", "explained_variance", "preference_accuracy"} - of_its_own
    # 4 passes over 22 decisions in sixes; no last decision of what was cut off; one success; one pass; one group at a time.
    updates = {"ppo": 4 * 4, "sft": 4 * 1, "reinforce": 4, "grape": 4}.get(algo, 4 * 4)
    assert row["updates"] == updates and row["kl_end"] > 0 and row["milestone"] >= 0


def test_the_next_ppo_learner_begins_where_the_last_one_ended(params: Params, sampled: Sampled, tmp_path: Path) -> None:
    params = having(params, "ppo", epochs=1)
    handle = run(params, sampled, tmp_path)
    stored = load_file(handle.path / CRITIC)
    found = open_learner(params, handle.path)
    assert found.actor_critic is not None and not found.actor_critic.critic.is_new
    again = found.actor_critic.stored()
    assert stored.keys() == again.keys() and all(torch.equal(stored[name], again[name]) for name in stored)

    # The learner that stayed in memory writes what one that is opened from disk writes.
    groups = [open_pair(tmp_path / "advantages.zarr")]
    base = open_group(sampled.path).attrs.inputs["checkpoint"]["path"]
    warm = open_learner(params, (sampled.path.parent / base).resolve())
    decisions = gather_decisions(groups, warm.policy.token_ids)
    assert decisions is not None and warm.actor_critic is not None
    warm.update(decisions, derive_seed(params.seed, "update", 1))
    kept = warm.actor_critic.stored()
    assert all(torch.equal(stored[name], kept[name]) for name in stored)


def test_the_preference_gradient_in_two_passes_is_that_of_autograd(
    params: Params, embedded: Path, sampled: Sampled, tmp_path: Path
) -> None:
    params = having(params, "grape", schedule="group", epochs=1, micro_batch=4, max_grad_norm=1e9)
    weigh_group(open_group(sampled.path), params, tmp_path / "advantages.zarr")
    policies = []
    for _ in range(2):
        policy = VLAPolicy.load(embedded, "cpu", trainable=True)
        policy.add_lora(params.policy.lora, seed=1)
        generator = torch.Generator().manual_seed(7)
        with torch.no_grad():  # so small that the log-probs stay those that were recorded, and away from the reference
            for name, parameter in policy.trainable_parameters():
                if "lora_B" in name:
                    parameter.copy_(1e-5 * torch.randn(parameter.shape, generator=generator))
        policies.append(policy)
    ours, plain = policies
    decisions = gather_decisions([open_pair(tmp_path / "advantages.zarr")], ours.token_ids)
    assert decisions is not None and len(decisions) == LENGTHS.sum()
    found = Learner(ours, params.update).update(decisions, seed=0)

    def total(g: int) -> torch.Tensor:
        n = LENGTHS[g]
        scores = plain.log_prob(sampled.image[g, :n], sampled.proprio[g, :n], ATTRS.instruction, sampled.token[g, :n])
        return scores.log_prob.sum()

    with torch.no_grad(), plain.reference():
        ref = torch.stack([total(g) for g in range(3)])
    log_ratio = torch.stack([total(g) for g in range(3)]) - ref
    better, worse = torch.tensor([0, 0, 1]), torch.tensor([1, 2, 2])
    loss = -torch.nn.functional.logsigmoid(params.update.grape.beta * (log_ratio[better] - log_ratio[worse])).mean()
    loss.backward()
    assert found["loss"] == pytest.approx(loss.item(), rel=1e-5)
    pairs = zip(ours.trainable_parameters(), plain.trainable_parameters(), strict=True)
    for (name, mine), (_, expected) in pairs:
        assert mine.grad is not None and expected.grad is not None
        limit = 1e-3 * expected.grad.abs().max().item()
        torch.testing.assert_close(mine.grad, expected.grad, rtol=1e-3, atol=limit, msg=name)


def test_pairs_of_several_groups_average_over_all_pairs_of_the_batch(
    params: Params, sampled: Sampled, tmp_path: Path
) -> None:
    """Where both groups are one batch, each of 3 pairs, a group's pull is half of what it is alone."""
    params = having(params, "grape")
    weigh_group(open_group(sampled.path), params, tmp_path / "advantages.zarr")
    pair = open_pair(tmp_path / "advantages.zarr")
    decisions = gather_decisions([pair, pair], range(10**6))
    assert decisions is not None
    n = len(decisions) // 2
    ours = Preferences(decisions, np.zeros(2 * n, np.float32), beta=0.1)
    rng = np.random.default_rng(0)
    log_prob = np.tile(rng.normal(size=n).astype(np.float32), 2)
    alone = ours.weigh(np.arange(n), log_prob[:n]).advantage[:n]
    together = ours.weigh(np.arange(2 * n), log_prob).advantage
    # `policy_loss` divides by the rows of the batch, twice as many: the advantage itself stays.
    np.testing.assert_allclose(together, np.tile(alone, 2), rtol=1e-5)


def test_advantages_of_another_algorithm_are_refused(params: Params, sampled: Sampled, tmp_path: Path) -> None:
    weighed = weigh_group(open_group(sampled.path), having(params, "grpo"), tmp_path / "advantages.zarr")
    with pytest.raises(MismatchError, match=r"for update\.algo=grpo, and params say tgrpo; add --algo grpo"):
        update(having(params, "tgrpo"), [weighed], None, tmp_path / "checkpoint")
    assert not (tmp_path / "checkpoint").exists()


def test_groups_of_an_earlier_checkpoint_are_learnt_from_within_the_limit(
    params: Params, sampled: Sampled, tmp_path: Path
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    checkpoint = run(having(params, "tgrpo"), sampled, first).path
    with pytest.raises(MismatchError, match=r"is not the checkpoint that sampled .*set update\.max_off_policy_kl"):
        run(having(params, "tgrpo"), sampled, second, checkpoint)
    second = tmp_path / "third"
    with pytest.raises(MismatchError, match=r"nats a token from this one; update\.max_off_policy_kl allows 1e-06"):
        run(having(params, "tgrpo", max_off_policy_kl=1e-6), sampled, second, checkpoint)
    found = run(having(params, "tgrpo", max_off_policy_kl=2.0), sampled, tmp_path / "fourth", checkpoint)
    assert [row["iteration"] for row in read_history(found.path)] == [1, 2]


def test_a_broken_optimiser_state_is_said_in_one_line(params: Params, sampled: Sampled, tmp_path: Path) -> None:
    checkpoint = run(having(params, "tgrpo", epochs=1), sampled, tmp_path).path
    (checkpoint / "optimizer.safetensors").write_bytes(b"nothing")
    with pytest.raises(ArtifactError, match=r"optimizer\.safetensors cannot be read .*copy the checkpoint again"):
        open_learner(having(params, "tgrpo"), checkpoint)
