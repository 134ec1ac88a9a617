import pytest

from stages.rewards.llm.errors import LlmError
from stages.rewards.llm.reply import one_line, program_of, text_of

PROGRAM = "def compute_reward(state, info):\n    return 1.0\n"
OTHER = "THRESHOLD = 0.1\n"
SKETCH = "def compute_reward(state, info):\n    ...\n"


@pytest.mark.parametrize(
    ("reply", "program"),
    [
        (f"```python\n{PROGRAM}```", PROGRAM),
        (f"Some thoughts.\n\n```python\n{PROGRAM}```\n\nMore `inline` thoughts.", PROGRAM),
        (f"```py\n{PROGRAM}```", PROGRAM),
        (f"```\n{PROGRAM}```", PROGRAM),
        (f"~~~python\n{PROGRAM}~~~", PROGRAM),
        (f"````python\n{PROGRAM}````", PROGRAM),
        (f"```python\r\n{PROGRAM}```".replace("\n", "\r\n").replace("\r\r", "\r"), PROGRAM),
        (f"```python\n{PROGRAM}```\n\n```python\n{OTHER}```", PROGRAM),
        (f"```python\n{OTHER}```\n\n```python\n{PROGRAM}```", PROGRAM),
        (f"A sketch:\n```python\n{SKETCH}```\nand the whole:\n```python\n{PROGRAM}```", PROGRAM),
        (f"1. Here:\n\n   ```python\n   {PROGRAM.replace(chr(10), chr(10) + '   ').rstrip(' ')}   ```", PROGRAM),
        (f"Never closed:\n```python\n{PROGRAM}", PROGRAM),
        (f"```text\nnotes\n```\n```python\n{PROGRAM}", PROGRAM),
        (PROGRAM, PROGRAM),
        (f"\n\nimport math\n\n{PROGRAM}\n", f"import math\n\n{PROGRAM}"),
        (
            "```python\ndef compute_reward(state, info:\n```",
            "def compute_reward(state, info:\n",
        ),  # the sandbox will say
        ("I cannot decide.", None),
        (f"Here you are:\n{PROGRAM}", None),  # prose and code, and nothing between them
        (f"```python\n{OTHER}```", None),
        ("```python\nclass A:\n    def compute_reward(self): ...\n```", None),
        ("```python\n# def compute_reward(state, info)\n```", None),
    ],
)
def test_the_program_in_a_reply(reply: str, program: str | None) -> None:
    assert program_of(reply) == program


def message(stop_reason: str, text: str = "", **more: object) -> dict[str, object]:
    return {
        "model": "claude-sonnet-4-6",
        "stop_reason": stop_reason,
        "content": [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": text}],
        "usage": {"output_tokens": 77},
        **more,
    }


def test_the_text_leaves_out_what_the_model_thought() -> None:
    assert text_of(message("end_turn", "Hello")) == "Hello"


@pytest.mark.parametrize(
    ("refused", "says"),
    [
        (message("refusal", "No."), r"refused to write the reward; .*--builtin"),
        (message("refusal", stop_details={"category": "cyber", "explanation": "a\nb"}), r"refused .*\(a b\)"),
        (message("max_tokens", "```python\ndef compute"), r"cut off after 77 tokens; raise gen_reward\.max_tokens"),
        (message("model_context_window_exceeded", "x"), r"context window.*gen_reward\.rounds"),
        (message("end_turn", " \n"), r"empty \(stop reason end_turn\).*--fresh"),
        ({"stop_reason": "end_turn", "content": []}, r"empty"),
    ],
)
def test_replies_without_an_answer(refused: dict[str, object], says: str) -> None:
    with pytest.raises(LlmError, match=says) as caught:
        text_of(refused)
    assert "\n" not in str(caught.value)


def test_one_line_holds_no_control_characters() -> None:
    assert one_line("a\n\tb\x1b[31m c") == "a b [31m c"
    assert len(one_line("x" * 1000)) == 300
