import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from stages.policy.memory import BatchCost, batch_cost, peak_bytes
from tests.policy.tiny import INSTRUCTION, LORA, make_policy, observations

CPU = torch.device("cpu")
MB = 250_000  # float32 numbers in a megabyte


def test_peak_is_of_what_lives_at_one_time() -> None:
    there_before = torch.ones(5 * MB)

    def run() -> None:
        a = there_before[: 2 * MB] + 1  # 2
        b = a * a  # 4; a view of `a` and an addition in place add nothing
        b.view(-1, 2).add_(1)
        del a  # 2
        c = torch.cat([b, b[:MB]])  # 5
        del b  # 3
        assert len(c + c) == 3 * MB  # 6

    assert peak_bytes(run, CPU) == 6_000_000


def test_activations_kept_for_the_backward_pass_count() -> None:
    x = torch.ones(MB, requires_grad=True)

    def run(keep: bool) -> None:
        with torch.set_grad_enabled(keep):
            y = x
            for _ in range(10):
                y = y.exp()

    # Each exp keeps its result. Without gradients there are an input and a result.
    assert peak_bytes(lambda: run(True), CPU) == 10_000_000
    assert peak_bytes(lambda: run(False), CPU) == 2_000_000


def test_peak_of_learning_is_what_the_allocator_saw() -> None:
    policy = make_policy()
    policy.add_lora(LORA, seed=1)
    images, proprio = observations(4)
    tokens = torch.full((4, 7), policy.token_ids[3])

    def run() -> None:
        for _, parameter in policy.trainable_parameters():
            parameter.grad = None
        policy.log_prob(images, proprio, INSTRUCTION, tokens).log_prob.sum().backward()

    run()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        run()
    now = peak = 0
    for event in recorded.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            peak = max(peak, now)
    assert peak_bytes(run, CPU) == pytest.approx(peak, rel=0.03)


def test_the_cost_of_a_batch_is_fixed_and_linear() -> None:
    fixed = torch.ones(MB)
    cost = batch_cost(lambda n: (fixed + 1, torch.ones(n * 3 * MB)), CPU)
    assert cost == BatchCost(one=4_000_000, each=3_000_000)
    assert [cost.largest(limit) for limit in (3_999_999, 4_000_000, 6_999_999, 7_000_000, 10**8)] == [0, 1, 1, 2, 33]
