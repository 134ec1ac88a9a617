"""The policy's benchmark: that its contenders do the same work, and that its table says what was measured."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from stages.bench_policy import Line, Peak, Record, bench_policy, table
from stages.bench_upstream import PlainLoop
from stages.bench_weights import INSTRUCTION, random_model, random_policy, word_tokenizer
from stages.errors import TgrpoError, UsageError
from stages.params import Params
from stages.policy.images import image_transform
from stages.policy.policy import VLAPolicy
from stages.policy.tokenizer import prompt_ids
from stages.roofline import Probes, Rates
from stages.timing import Cost, by_turns
from tests.conftest import Run
from tests.policy.tiny import make_policy

CPU = torch.device("cpu")


def _record() -> Record:
    def line(what: str, ours: float, plain: float | None, roofline: float | None) -> Line:
        cost = Cost(ours, 0.9 * ours, 1.1 * ours, ours, 30)
        return Line(what, cost, None if plain is None else replace(cost, median=plain), roofline, 8, "actions")

    return Record(
        weights="openvla-tiny, random weights",
        batch=8,
        learn_batch=8,
        device="the CPU",
        dtype="float32",
        parameters=1_500_000,
        prompt_tokens=7,
        sequence=50,
        settings={"rank": 16},
        machine={"cores": 2, "processor": "some processor", "load_average": [0.1, 1.2]},
        versions={"torch": "2.13.0"},
        had_processor=1.0,
        acting_rates=Rates(2e10, 1e11),
        learning_rates=Rates(4e10, 2e11),
        lines={"preprocessing": line("preprocessing", 0.5, 4.0, None), "act": line("act", 20.0, 80.0, 5.0)},
        peak=Peak(weights=2**20, acting=2**20, learning=2**21, plain_acting=2**20, plain_learning=2**22),
        group_update=4.0,
        group_flops=400_000_000_000,
    )


def test_the_table_gives_both_ratios() -> None:
    """80 ms is 4 times 20; 20 ms is 4 times the roofline's 5; 8 actions in 20 ms are 400 a second; 0.1 of 0.2 TFLOP/s."""
    lines = list(table(_record()))
    act = next(line.split() for line in lines if line.startswith("  act"))
    assert act == [
        "act",
        "20.00",
        "18.00-22.00",
        "400",
        "actions",
        "80.00",
        "ms",
        "4.0",
        "x",
        "5.00",
        "ms",
        "4.00",
        "x",
    ]
    preprocessing = next(line for line in lines if line.startswith("  preprocessing"))
    assert preprocessing.endswith("4.00 ms     8.0 x")
    assert any("4.0 s, at 50%" in line for line in lines)
    assert any("rollout and update in 4.0 MiB" in line for line in lines)
    assert lines[2].startswith("batch of 8, 7 prompt tokens")
    assert list(table(replace(_record(), learn_batch=2)))[2].startswith("batch of 8, learning from 2 at once, 7 prompt")
    assert not any("BUSY" in line for line in lines)
    assert any("BUSY" in line and "60%" in line for line in table(replace(_record(), had_processor=0.6)))


def test_the_record_is_json_with_the_ratios() -> None:
    record = json.loads(_record().to_json())
    assert record["ratios"]["act"] == {"per_s": 400.0, "speed_to_plain": 4.0, "time_to_roofline": 4.0}
    assert record["ratios"]["preprocessing"]["time_to_roofline"] is None
    assert record["group_utilisation"] == 0.5
    assert record["peak_total"] == 2**22


def test_the_plain_loop_decides_the_same(embedded: Path) -> None:
    """Greedily over the whole vocabulary, with the same log-probs: it is slower at the same work, not at other work."""
    policy = VLAPolicy.load(embedded, "cpu", sampling="full")
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (3, 96, 96, 3), dtype=np.uint8)
    proprio = rng.uniform(-0.1, 0.1, (3, 8)).astype(np.float32)
    loop = PlainLoop(policy.model, policy.tokenizer, center_crop=True)
    tokens, log_probs, seconds = loop.act(images, proprio, INSTRUCTION, 0.0)
    acted = policy.act(images, proprio, INSTRUCTION, 0.0)
    assert np.array_equal(tokens, acted.tokens)
    np.testing.assert_allclose(log_probs, acted.log_prob, atol=5e-5)
    clock = {name: took[0] for name, took in seconds.items()}
    assert clock["preprocessing"] + clock["prefill"] + 6 * clock["decode"] < clock["act"]

    pixels = image_transform(policy.config, True, CPU).normalize(policy.prepare(images).pixels)
    scored = torch.stack(loop.score(pixels, proprio, INSTRUCTION, tokens)).detach().numpy()
    np.testing.assert_allclose(scored, log_probs, atol=5e-5)


def test_the_plain_loop_samples(embedded: Path) -> None:
    policy = VLAPolicy.load(embedded, "cpu")
    loop = PlainLoop(policy.model, policy.tokenizer, center_crop=True)
    images, proprio = np.zeros((1, 96, 96, 3), np.uint8), np.zeros((1, 8), np.float32)
    torch.manual_seed(0)
    draws = {tuple(loop.act(images, proprio, INSTRUCTION, 1.0)[0][0]) for _ in range(4)}
    assert len(draws) > 1


def test_the_plain_loop_does_not_end_before_its_seven_tokens() -> None:
    policy = make_policy()
    with torch.no_grad():
        policy.model.language_model.lm_head.weight.zero_()  # the first of equals is the likeliest
    policy.model.language_model.generation_config.eos_token_id = 0
    loop = PlainLoop(policy.model, policy.tokenizer, center_crop=True)
    tokens, _, _ = loop.act(np.zeros((1, 32, 32, 3), np.uint8), np.zeros((1, 8), np.float32), INSTRUCTION, 0.0)
    assert tokens.shape == (1, 7)


def test_the_plain_loop_prepares_published_images() -> None:
    """Compressed, resized to the towers' size and cropped: a frame of one colour keeps it, and the border goes."""
    policy = make_policy()
    policy.config.image_resize_strategy = "resize-naive"
    frame = np.full((256, 256, 3), 128, np.uint8)
    frame[:4] = 255
    crop, whole = (
        PlainLoop(policy.model, policy.tokenizer, center_crop=crop).preprocess(frame)[0, 3] for crop in (True, False)
    )
    assert crop.shape == whole.shape == (32, 32)
    assert whole[0].mean() > 0.2 and crop[1:].abs().max() < 0.05  # SigLIP's 128 / 127.5 - 1


def test_random_weights_are_seeded_and_made_in_their_dtype() -> None:
    config = make_policy().config
    one = random_model(config, CPU, torch.bfloat16)
    with torch.random.fork_rng():
        torch.manual_seed(7)
        two = random_model(config, CPU, torch.bfloat16)
    assert {parameter.dtype for parameter in one.parameters()} == {torch.bfloat16}
    assert torch.get_default_dtype() == torch.float32
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert one.language_model.model.rotary_emb.inv_freq.dtype == torch.float32


def test_the_stand_in_tokenizer_ends_as_llamas_does() -> None:
    """BOS, 23 words and signs, the line break among them, and the empty piece; Llama's own splits a word or two."""
    ids = prompt_ids(word_tokenizer(32000), INSTRUCTION)
    assert len(ids) == 25
    assert ids[0] == 1 and ids[-1] == 29871 and 0 not in ids


def test_openvla_7b_is_refused_where_it_does_not_fit(params: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    import stages.bench_weights

    monkeypatch.setattr(stages.bench_weights, "available_bytes", lambda: 8 * 2**30)
    cpu = params.model_copy(update={"policy": params.policy.model_copy(update={"device": "cpu"})})
    with pytest.raises(
        TgrpoError, match=r"openvla-7b takes about \d+\.\d GiB on cpu in float32 .* where 8\.0 GiB are free"
    ):
        random_policy("openvla-7b", cpu, 4)


def test_the_probes_count_what_they_move() -> None:
    probes = Probes(CPU, torch.float32, read=2**20)
    rates = probes.rates({name: Cost(1.0, 1.0, 1.0, 1.0, 1) for name in probes.contenders()})
    assert rates.bandwidth == pytest.approx(2 * 2**20 * 1000)  # a copy reads and writes
    assert rates.matmul == pytest.approx(2 * 768**3 * 1000)
    assert set(by_turns(probes.contenders(repeats=1), rounds=1)) == set(probes.contenders())


def test_rounds_end_with_the_budget() -> None:
    contender = {"it": lambda: {"piece": (0.1, 0.1)}}
    assert by_turns(contender, rounds=9)["piece"].steps == 9
    assert by_turns(contender, rounds=9, budget_s=0)["piece"].steps == 5


def test_a_batch_of_none(params: Params) -> None:
    with pytest.raises(UsageError, match="--batch 0: expected at least 1"):
        bench_policy(params, 0)
    with pytest.raises(UsageError, match="--learn-batch 0: expected at least 1"):
        bench_policy(params, 1, learn_batch=0)


def test_the_whole_benchmark(tgrpo: Callable[..., Run], project: Path) -> None:
    run = tgrpo(
        "bench",
        "policy",
        "--quick",
        "--batch",
        "4",
        "--learn-batch",
        "2",
        "--json",
        "out.json",
        "--set",
        "policy.threads=1",
    )
    assert run.code == 0, run.err
    record = json.loads((project / "out.json").read_text())
    lines = record["lines"]
    assert (record["batch"], record["learn_batch"]) == (4, 2)
    assert list(lines) == ["preprocessing", "prefill", "decode", "act", "act_adapter", "score", "reference", "learn"]
    assert all(line["plain"]["median"] > 0 for name, line in lines.items() if name != "reference")
    bounded = [line for name, line in lines.items() if name != "preprocessing"]
    assert all(line["ours"]["median"] > line["roofline"] for line in bounded)  # else the roofline is none
    assert record["ratios"]["act"]["speed_to_plain"] > 1.5
    assert record["peak"]["learning"] > record["peak"]["weights"] / 10
    assert "act with an adapter" in run.out


def test_random_openvla_tiny_has_the_sizes_of_params(params: Params) -> None:
    policy = random_policy("openvla-tiny", params, 2)
    assert policy.config.llama.hidden_size == params.sft.architecture.hidden_size
    side = params.sim.image_size
    acted = policy.act(np.zeros((2, side, side, 3), np.uint8), np.zeros((2, 8), np.float32), INSTRUCTION, 1.0)
    assert np.isfinite(acted.log_prob).all()
