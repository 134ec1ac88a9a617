"""The language model on recorded sequences: hidden states, logits, log-probs, entropies; batches and padding."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stages.policy.modeling import OpenVLAForActionPrediction
from stages.policy.parity.checks import LOG_PROB, LOGIT, STATE, Check, Fixture, Pair, close, same
from stages.types import ACTION_DIM

ACTION_ROWS = ACTION_DIM + 1  # the last logits of a sequence: one row for each action token, and the row after them
EVERY_ROW = ("all_lse", "all_max", "all_argmax", "all_mean")
SCORES = ("logprobs", "entropy")
SAMPLE = (*EVERY_ROW, "logits_cols_all", *SCORES, "logprobs_action256", "entropy_action256")
BATCH = (*EVERY_ROW, "logits_cols8", *SCORES)
PADDED = ("logits_cols8", *SCORES)
ALL_COLUMNS = slice(0, None)


@dataclass(frozen=True)
class Forward:
    """A teacher-forced pass over one sequence: `text` ids from BOS to the last action token, the image in between."""

    text: NDArray[np.int64]  # (P + 7,)
    hidden: Tensor  # (layers + 1, S, hidden_size): what enters, what leaves each layer; the last after the final norm
    logits: Tensor  # (S, vocab_size) float32

    def scores(self, candidates: slice) -> tuple[Tensor, Tensor]:
        """Log-probs and entropies of the action tokens, (7,) each, over some columns; NaN for a token outside them."""
        every = self.logits[-ACTION_ROWS:-1, candidates].log_softmax(-1)
        column = torch.from_numpy(self.text[-ACTION_DIM:]) - candidates.start
        outside = (column < 0) | (column >= every.shape[-1])
        log_prob = every.gather(-1, column.clamp(0, every.shape[-1] - 1)[:, None])[:, 0]
        return log_prob.masked_fill(outside, torch.nan), -(every.exp() * every).sum(-1)

    def quantity(self, name: str, columns: NDArray[np.int64], actions: range) -> Tensor:
        """What a fixture's array of that name holds for this sequence."""
        match name:
            case "all_lse":
                return self.logits.logsumexp(-1)
            case "all_max":
                return self.logits.amax(-1)
            case "all_argmax":
                return self.logits.argmax(-1)
            case "all_mean":
                return self.logits.mean(-1)
            case "logits_cols_all":
                return self.logits[:, columns]
            case "logits_cols8":
                return self.logits[-ACTION_ROWS:, columns]
            case "logprobs" | "entropy":
                return self.scores(ALL_COLUMNS)[name == "entropy"]
            case "logprobs_action256" | "entropy_action256":
                return self.scores(slice(actions.start, actions.stop))[name == "entropy_action256"]
        raise ValueError(name)


@torch.inference_mode()
def forward(model: OpenVLAForActionPrediction, text: NDArray[np.int64], pixel_values: Tensor) -> list[Forward]:
    """One pass over a batch: text (N, P + 7), pixel values (N, 6, size, size)."""
    embeds = model.embed(pixel_values, torch.from_numpy(text).to(pixel_values.device))
    output = model.language_model.model(inputs_embeds=embeds, output_hidden_states=True, use_cache=False)
    hidden = torch.stack([*output.hidden_states[:-1], output.last_hidden_state], dim=1)
    logits = model.language_model.lm_head(output.last_hidden_state).float()
    return [Forward(*row) for row in zip(text, hidden.cpu(), logits.cpu(), strict=True)]


def compare_language(model: OpenVLAForActionPrediction, fixture: Fixture, pixel_values: Tensor) -> Iterator[Check]:
    """The s*, b3_* and pad_* arrays; image i of `pixel_values` (N, 6, size, size) belongs to sample i."""
    samples = fixture.numbered("s{}_input_ids")[: len(pixel_values)]
    if not samples:
        fixture.find("s0_input_ids")
        return
    texts = [fixture.arrays[f"s{i}_input_ids"] for i in samples]
    single = [forward(model, text[None], pixel_values[i : i + 1])[0] for i, text in enumerate(texts)]
    compare = _Comparison(fixture, model.action_ids)
    yield from compare.layers(single)
    yield from compare.states("s", single)
    yield from compare.quantities("s", single, SAMPLE)
    if arrays := fixture.find("s_logits_full8"):
        pairs = [(one.logits[-ACTION_ROWS:], want) for one, want in zip(single, arrays[0], strict=False)]
        yield close("s_logits_full8", pairs, LOGIT)
    yield from _compare_batch(model, compare, single, pixel_values)
    yield from _compare_padded(model, compare, single, pixel_values)


@dataclass(frozen=True)
class _Comparison:
    fixture: Fixture
    actions: range

    def quantities(self, prefix: str, forwards: Sequence[Forward], names: Sequence[str]) -> Iterator[Check]:
        """Prefix s: an array a sample, s0_, s1_ and so on; any other prefix: one array, a row a sequence."""
        found = self.fixture.find("cols")
        for name in names:
            if "cols" in name and not found:
                continue
            columns = found[0].astype(np.int64) if found else np.zeros(0, np.int64)
            pairs = [
                (one.quantity(name, columns, self.actions), want) for one, want in self._stored(prefix, name, forwards)
            ]
            if pairs and name == "all_argmax":
                yield same(_label(prefix, name), pairs)
            elif pairs:
                limit = LOG_PROB if name.startswith(SCORES) else LOGIT
                yield close(_label(prefix, name), pairs, limit)

    def layers(self, forwards: Sequence[Forward]) -> Iterator[Check]:
        """Each sample's hidden states, a line for each layer."""
        layers: dict[int, list[Pair]] = {}
        for one, want in self._stored("s", "llama_hidden", forwards):
            for layer, (ours, theirs) in enumerate(zip(one.hidden, want, strict=True)):
                layers.setdefault(layer, []).append((ours, theirs))
        for layer, pairs in layers.items():
            yield close(f"s*_llama_hidden[{layer}]", pairs, STATE, scaled=True)

    def states(self, prefix: str, forwards: Sequence[Forward]) -> Iterator[Check]:
        """The last hidden states, but for rows of padding."""
        stored = self._stored(prefix, "hidden_final", forwards)
        if stored:
            pairs = [(one.hidden[-1], want[: len(one.hidden[-1])]) for one, want in stored]
            yield close(_label(prefix, "hidden_final"), pairs, STATE, scaled=True)

    def _stored(self, prefix: str, name: str, forwards: Sequence[Forward]) -> list[tuple[Forward, NDArray[Any]]]:
        """Which sequences have an array of this name, and what it holds for them."""
        if prefix != "s":
            found = self.fixture.find(f"{prefix}_{name}")
            return list(zip(forwards, found[0], strict=True)) if found else []
        stored = []
        for i, one in enumerate(forwards):
            # Large arrays may be stored for the first sample only, so the others' are not missed.
            if (i == 0 or f"s{i}_{name}" in self.fixture.arrays) and (found := self.fixture.find(f"s{i}_{name}")):
                stored.append((one, found[0]))
        return stored


def _label(prefix: str, name: str) -> str:
    return f"s*_{name}" if prefix == "s" else f"{prefix}_{name}"


def _compare_batch(
    model: OpenVLAForActionPrediction, compare: _Comparison, single: list[Forward], pixel_values: Tensor
) -> Iterator[Check]:
    """Prompts of one length as one batch: against the original's batch, and against each by itself."""
    found = compare.fixture.find("b3_input_ids")
    if not found:
        return
    rows = [_sample_of(text, single) for text in found[0]]
    if None in rows:
        return
    batch = forward(model, found[0], pixel_values[rows])
    if arrays := compare.fixture.find("b3_projected"):
        with torch.inference_mode():
            projected = model.projector(model.vision_backbone(pixel_values[rows]))
        yield close("b3_projected", [(projected.cpu(), arrays[0])], STATE, scaled=True)
    yield from compare.states("b3", batch)
    yield from compare.quantities("b3", batch, BATCH)
    alone = [single[row] for row in rows if row is not None]
    yield close("logits, batch = single", [(a.logits, b.logits) for a, b in zip(batch, alone, strict=True)], LOGIT)


def _compare_padded(
    model: OpenVLAForActionPrediction, compare: _Comparison, single: list[Forward], pixel_values: Tensor
) -> Iterator[Check]:
    """A batch of unequal lengths, padded on the right.

    Nothing here pads: a causal model cannot look at what comes later, so padding on the right changes no row before it,
    with an attention mask (the original's) or without. Both halves of that are compared.
    """
    found = compare.fixture.find("pad_input_ids", "pad_attention_mask")
    if not found:
        return
    texts = [ids[mask.astype(bool)] for ids, mask in zip(*found, strict=True)]
    rows = [_sample_of(text, single) for text in texts]
    if None in rows:
        return
    alone = [single[row] for row in rows if row is not None]
    yield from compare.states("pad", alone)
    yield from compare.quantities("pad", alone, PADDED)
    padded = forward(model, found[0], pixel_values[rows])
    pairs = [(long.logits[: len(one.logits)], one.logits) for long, one in zip(padded, alone, strict=True)]
    yield close("logits, right-padded = unpadded", pairs, LOGIT)


def _sample_of(text: NDArray[np.int64], single: list[Forward]) -> int | None:
    """Which sample a row of a batch is."""
    return next((i for i, one in enumerate(single) if np.array_equal(one.text, text)), None)
