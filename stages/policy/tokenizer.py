"""Text in: OpenVLA's prompt, and a small tokenizer for openvla-tiny.

The tiny tokenizer knows LIBERO's words whole, spells any other word in letters, and holds the prompt's fixed ends and
stock phrases as one token each, because every token costs time. Its ids leave room for the action tokens, as Llama's do
in OpenVLA.
"""

import re
from string import ascii_lowercase

from tokenizers import Regex, Tokenizer
from tokenizers.models import WordPiece
from tokenizers.pre_tokenizers import Split
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

PROMPT_START = "In: What action should the robot take to"
PROMPT_END = "?\nOut:"
STOCK_PHRASES = (PROMPT_START, PROMPT_END, "pick up the", "and place it in the", "and place it on the", "put the")

# Every word of the instructions of LIBERO's five suites.
LIBERO_WORDS = """
    akita alphabet and at back basket bbq between black book both bottle bottom bowl box butter cabinet caddy
    center cheese chocolate close compartment cookies cream drawer dressing from front frying in inside it
    juice ketchup layer left microwave middle milk moka mug next of off on open orange pan pick place plate
    pot pots pudding push put rack ramekin red right salad sauce shelf soup stack stove table the them to
    tomato top tray turn under up white wine wooden yellow
""".split()  # noqa: SIM905 (a list of 81 literals says no more)

LLAMA_EMPTY_PIECE = "\u2581"  # id 29871 in Llama-2's vocabulary


def prompt(instruction: str) -> str:
    """OpenVLA's prompt for an instruction."""
    return f"{PROMPT_START} {instruction.lower()}{PROMPT_END}"


def prompt_ids(tokenizer: PreTrainedTokenizerBase, instruction: str) -> list[int]:
    """The prompt's ids, BOS first. Llama's empty piece, where there is one, comes last, as in training."""
    ids: list[int] = tokenizer(prompt(instruction))["input_ids"]
    empty = tokenizer.get_vocab().get(LLAMA_EMPTY_PIECE)
    return ids if empty is None or ids[-1] == empty else [*ids, empty]


def tiny_tokenizer(pad_token_id: int, n_action_bins: int) -> PreTrainedTokenizerFast:
    """A WordPiece tokenizer whose text ids end below the `n_action_bins` action ids, which end below `pad_token_id`."""
    letters = [*ascii_lowercase, *(f"##{letter}" for letter in ascii_lowercase)]
    pieces = ["<unk>", "<s>", "</s>", *STOCK_PHRASES, *letters, *LIBERO_WORDS]
    assert len(pieces) <= pad_token_id - n_action_bins
    vocab = {piece: index for index, piece in enumerate(pieces)} | {"<PAD>": pad_token_id}
    backend = Tokenizer(WordPiece(vocab, unk_token="<unk>"))
    phrases = "|".join(rf"{re.escape(phrase)}(?![a-z])" for phrase in STOCK_PHRASES)
    words = Regex(rf"{phrases}|[a-z]+|[^\sa-z]")
    backend.pre_tokenizer = Split(words, behavior="removed", invert=True)
    backend.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", vocab["<s>"])])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<PAD>"
    )
