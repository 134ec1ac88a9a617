"""What the policy does: prompts, greedy tokens over the whole vocabulary, actions, and its scores of recorded tokens."""

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stages.policy.action_tokens import ActionCodec
from stages.policy.images import PreparedImages
from stages.policy.parity.checks import ACTION, LOG_PROB, LOGIT, Check, Fixture, Pair, close, same
from stages.policy.parity.language import ACTION_ROWS, forward
from stages.policy.policy import Acted, VLAPolicy
from stages.policy.tokenizer import LLAMA_EMPTY_PIECE, PROMPT_END, PROMPT_START, prompt_ids
from stages.types import ACTION_DIM, PROPRIO_DIM

Frames = NDArray[np.uint8] | PreparedImages


def instructions(prompts: NDArray[np.str_]) -> list[str]:
    """What stands between the prompt's fixed ends."""
    return [str(prompt).removeprefix(f"{PROMPT_START} ").removesuffix(PROMPT_END) for prompt in prompts]


def compare_prompts(policy: VLAPolicy, fixture: Fixture, actions: Fixture) -> Iterator[Check]:
    """Ids of the prompts, with and without the trailing empty piece, and of a prompt followed by an action as text."""
    if not (found := fixture.find("prompts")):
        return
    ours = [prompt_ids(policy.tokenizer, instruction) for instruction in instructions(found[0])]
    pairs: list[Pair] = [
        (ours[i], fixture.arrays[f"s{i}_input_ids"][:-ACTION_DIM]) for i in fixture.numbered("s{}_input_ids")
    ]
    if arrays := fixture.find("prompt_len"):
        yield same("prompt_len", [([len(ids) for ids in ours], arrays[0])])
    if pairs:
        yield same("prompt ids", pairs)
    empty = policy.tokenizer.get_vocab().get(LLAMA_EMPTY_PIECE)
    bare = [ids[:-1] if ids[-1] == empty else ids for ids in ours]
    pairs = [(bare[i], fixture.arrays[f"pa_input_ids_{i}"]) for i in fixture.numbered("pa_input_ids_{}")]
    if pairs:
        yield same("pa_input_ids", pairs)
    if actions.arrays and (arrays := actions.find("batch_ids", "retokenized_prompt_plus_action_ids")):
        texts = [f"{found[0][0]} {policy.tokenizer.decode(row)}" for row in arrays[0]]
        ids = policy.tokenizer(texts)["input_ids"]
        yield same("retokenized_prompt_plus_action_ids", list(zip(ids, arrays[1], strict=True)))


def compare_decisions(
    policy: VLAPolicy, codec: ActionCodec, fixture: Fixture, seen: dict[str, Frames | None]
) -> Iterator[Check]:
    """The pa_* arrays: greedy tokens, and the actions they become.

    Args:
        policy: chooses among the whole vocabulary, as the original does, and crops.
        seen: for "" and "_crop", the images that the arrays of that ending were made from; camera frames or prepared.
    """
    if not (prompts := fixture.find("prompts")):
        return
    for kind, images in seen.items():
        if images is None or not (found := fixture.find(f"pa_tokens{kind}")):
            continue
        acted = [
            policy.act(images[i : i + 1], np.zeros((1, PROPRIO_DIM), np.float32), instruction, temperature=0.0)
            for i, instruction in zip(range(len(images)), instructions(prompts[0]), strict=False)
        ]
        yield from _compare_acted(kind, acted, found[0], codec, fixture)
    if arrays := fixture.find("q01", "q99", "mask"):
        bounds = codec.bounds
        yield close("q01, q99, mask", list(zip((bounds.low, bounds.high, bounds.mask), arrays, strict=True)), ACTION)


def _compare_acted(
    kind: str, acted: list[Acted], tokens: NDArray[np.int64], codec: ActionCodec, fixture: Fixture
) -> Iterator[Check]:
    chosen = np.concatenate([one.tokens for one in acted])
    yield same(f"pa_tokens{kind}", [(chosen, tokens[: len(chosen)])])
    outputs = [] if kind else fixture.numbered("pa_generate_output_{}")[: len(chosen)]
    if outputs:
        written = [fixture.arrays[f"pa_generate_output_{i}"][-ACTION_DIM:] for i in outputs]
        yield same("pa_generate_output", [(chosen[: len(outputs)], np.stack(written))])
    # Actions from the fixture's tokens, so that one wrong token does not hide whether the decoding is right.
    normalized = codec.tokenizer.decode(tokens)
    raw = codec.bounds.unnormalize(normalized)
    for name, ours in (("normalized", normalized), ("actions", raw), ("actions_preappended", raw)):
        if arrays := fixture.find(f"pa_{name}{kind}"):
            yield close(f"pa_{name}{kind}", [(ours, arrays[0])], ACTION)
    if arrays := fixture.find(f"pa_env_actions{kind}"):
        whole = np.concatenate([one.action for one in acted])
        pairs = [(codec.decode(tokens), arrays[0]), (whole, arrays[0][: len(whole)])]
        yield close(f"pa_env_actions{kind}", pairs, ACTION)


def compare_greedy_gap(policy: VLAPolicy, fixture: Fixture, pixel_values: Tensor) -> Iterator[Check]:
    """How far the best token is ahead of the next at each greedy step: what a rounding would have to turn."""
    if not (found := fixture.find("pa_tokens", "pa_top1_top2_gap", "pa_generate_output_0")):
        return
    pairs: list[Pair] = []
    for i in fixture.numbered("pa_generate_output_{}")[: len(pixel_values)]:
        text = fixture.arrays[f"pa_generate_output_{i}"]
        (one,) = forward(policy.model, text[None], pixel_values[i : i + 1])
        best = one.logits[-ACTION_ROWS:-1].topk(2).values
        pairs.append((best[:, 0] - best[:, 1], found[1][i]))
    yield close("pa_top1_top2_gap", pairs, 2 * LOGIT)


@torch.no_grad()
def compare_scores(policy: VLAPolicy, among_actions: VLAPolicy, fixture: Fixture, images: Frames) -> Iterator[Check]:
    """`log_prob`, as learning calls it, on the recorded tokens; and a batch of environments against each by itself.

    Args:
        policy: scores over the whole vocabulary.
        among_actions: the same model's, over the action tokens; samples with other tokens are left out there.
        images: those of the samples.
    """
    if not (prompts := fixture.find("prompts")):
        return
    texts = instructions(prompts[0])
    for scorer, ending in ((policy, ""), (among_actions, "_action256")):
        log_probs: list[Pair] = []
        entropies: list[Pair] = []
        for i in fixture.numbered(f"s{{}}_logprobs{ending}")[: len(images)]:
            tokens = fixture.arrays[f"s{i}_input_ids"][None, -ACTION_DIM:]
            want = fixture.arrays[f"s{i}_logprobs{ending}"]
            if np.isnan(want).any():
                continue
            scores = scorer.log_prob(images[i : i + 1], np.zeros((1, PROPRIO_DIM), np.float32), texts[i], tokens)
            log_probs.append((scores.log_prob[0].cpu(), want))
            if f"s{i}_entropy{ending}" in fixture.arrays:
                entropies.append((scores.entropy[0].cpu(), fixture.arrays[f"s{i}_entropy{ending}"]))
        if log_probs:
            yield close(f"log_prob() of s*{ending}", log_probs, LOG_PROB)
        if entropies:
            yield close(f"entropy of log_prob() of s*{ending}", entropies, LOG_PROB)
    yield from _compare_act_batch(among_actions, texts[0], images)


def _compare_act_batch(policy: VLAPolicy, instruction: str, images: Frames) -> Iterator[Check]:
    """Needs nothing of the original: its code has no batches."""
    state = np.zeros((len(images), PROPRIO_DIM), np.float32)
    batch = policy.act(images, state, instruction, temperature=0.0)
    alone = [policy.act(images[i : i + 1], state[:1], instruction, temperature=0.0) for i in range(len(images))]
    yield same("act(), tokens, batch = single", [(batch.tokens, np.concatenate([one.tokens for one in alone]))])
    pairs = [(batch.log_prob, np.concatenate([one.log_prob for one in alone]))]
    yield close("act(), log-probs, batch = single", pairs, LOG_PROB)
