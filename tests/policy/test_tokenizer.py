from stages.policy.tokenizer import prompt, prompt_ids, tiny_tokenizer

TOKENIZER = tiny_tokenizer(pad_token_id=400, n_action_bins=256)


def pieces(instruction: str) -> list[str]:
    return TOKENIZER.convert_ids_to_tokens(prompt_ids(TOKENIZER, instruction))


def test_prompt_is_openvlas() -> None:
    assert prompt("Pick up the Milk") == "In: What action should the robot take to pick up the milk?\nOut:"


def test_stock_phrases_are_one_token_each() -> None:
    assert pieces("pick up the tomato sauce and place it in the basket") == [
        "<s>",
        "In: What action should the robot take to",
        "pick up the",
        "tomato",
        "sauce",
        "and place it in the",
        "basket",
        "?\nOut:",
    ]


def test_a_word_that_libero_lacks_is_spelled() -> None:
    assert pieces("putt the zoo")[2:-1] == ["put", "##t", "the", "z", "##o", "##o"]


def test_no_text_uses_an_action_id() -> None:
    text_ids = [index for index in TOKENIZER.get_vocab().values() if index != TOKENIZER.pad_token_id]
    assert max(text_ids) < 400 - 256
    assert TOKENIZER.pad_token_id == 400
