"""The whole conversation, with the real client, a server on this machine, and real files."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from stages.rewards.llm.client import Client
from stages.rewards.llm.errors import LlmError
from stages.rewards.llm.generate import PAID, Findings, Generation, generate
from stages.rewards.llm.prompt import GenerationRequest
from stages.rewards.llm.reply import program_of
from tests.rewards.llm.conftest import KEY, quick, request_for
from tests.rewards.llm.loopback import GOOD_REPLY, PIECE, Loopback, cut, say, status

Connect = Callable[..., Client]
GOOD = program_of(GOOD_REPLY) or ""
BAD = "def compute_reward(state, info):\n    return 0.0\n"
BAD_REPLY = f"```python\n{BAD}```"


def examine(source: str) -> Findings | None:
    return None if source == GOOD else "The reward is constant.\nIt is 0.0 at all 57 moments."


class Work:
    """A place to generate in, again and again, with one cache."""

    def __init__(self, root: Path, connect: Connect) -> None:
        self.root, self.connect = root, connect
        self.folder = root / "none"
        self.warnings: list[str] = []

    def __call__(
        self, server: Loopback, *, request: GenerationRequest | None = None, fresh: bool = False, **settings: object
    ) -> Generation:
        self.folder = self.root / f"generation-{len(list(self.root.glob('generation-*')))}"
        return generate(
            request or request_for(),
            quick(**settings),
            examine,
            self.folder,
            cache=self.root / "cache",
            fresh=fresh,
            warn=self.warnings.append,
            client=self.connect(server, **settings),
        )

    def json(self, name: str) -> dict:  # type: ignore[type-arg]
        return dict(json.loads((self.folder / name).read_text()))

    def files(self) -> list[str]:
        return sorted(path.relative_to(self.folder).as_posix() for path in self.folder.rglob("*") if path.is_file())


@pytest.fixture
def work(tmp_path: Path, connect: Connect) -> Work:
    return Work(tmp_path, connect)


def test_a_good_first_reply_and_all_that_is_kept(work: Work) -> None:
    with Loopback() as server:
        made = work(server)
    assert made.source == GOOD and len(made.turns) == 1
    assert made.sha256 == hashlib.sha256(GOOD.encode()).hexdigest()
    assert made.model == "claude-sonnet-4-6" and made.tokens.cache_write == 3000
    assert made.cost.usd is None and "not Anthropic's own address" in made.cost.note
    assert work.files() == [
        "candidates/01.py",
        "digests.json",
        "paid.json",
        "prompt.json",
        "replies/01.json",
        "usage.json",
    ]
    assert (work.folder / "candidates/01.py").read_text() == GOOD
    reply = work.json("replies/01.json")
    assert reply["request_id"] == "req_loopback" and reply["message"]["content"][0]["text"] == GOOD_REPLY
    prompt = work.json("prompt.json")
    assert prompt["messages"] == server.requests[0].body["messages"]
    assert prompt["system"] == server.requests[0].body["system"]
    usage = work.json("usage.json")
    assert usage["tokens"]["input"] == 2100 and work.json("paid.json")["rounds"] == [1]
    for name, digest in work.json("digests.json").items():
        assert hashlib.sha256((work.folder / name).read_bytes()).hexdigest() == digest
    assert set(work.json("digests.json")) == set(work.files()) - {"digests.json", PAID}


def test_an_identical_request_is_answered_without_the_server_and_without_a_key(
    work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Loopback() as server:
        first = work(server)
        digests = work.json("digests.json")
        monkeypatch.delenv("ANTHROPIC_API_KEY")
        again = work(server)
        assert len(server.requests) == 1
    assert again.source == first.source and again.tokens == first.tokens
    assert again.turns[0].reply.from_cache and again.paid.usd == 0
    assert work.json(PAID)["rounds"] == [] and work.json("digests.json") == digests  # all else is the same


@pytest.mark.parametrize(
    "change",
    [{"fresh": True}, {"model": "claude-opus-5"}, {"max_tokens": 9000}, {"temperature": 0.5}, {"request": "another"}],
    ids=lambda change: next(iter(change)),
)
def test_another_request_or_fresh_asks_again(work: Work, change: dict[str, object]) -> None:
    if "request" in change:
        change = {"request": request_for("libero_object/6", ("in", "butter_1", "basket_1_contain_region"))}
    with Loopback() as server:
        work(server)
        work(server, **change)  # type: ignore[arg-type]
        assert len(server.requests) == 2


def test_another_server_is_another_request(work: Work) -> None:
    for _ in range(2):
        with Loopback() as server:
            work(server)
            assert len(server.requests) == 1


def test_a_cache_file_that_cannot_be_read_counts_as_none(work: Work) -> None:
    with Loopback() as server:
        work(server)
        (file,) = (work.root / "cache").iterdir()
        file.write_text(file.read_text()[:100])
        work(server)
        assert len(server.requests) == 2
        work(server)
        assert len(server.requests) == 2


def test_the_constant_part_is_byte_equal_between_tasks_and_marked(work: Work) -> None:
    with Loopback() as server:
        work(server)
        work(server, request=request_for("libero_object/6", ("in", "butter_1", "basket_1_contain_region")))
    milk, butter = (request.body for request in server.requests)
    assert json.dumps(milk["system"]) == json.dumps(butter["system"])
    assert milk["system"][-1]["cache_control"] == {"type": "ephemeral"}
    assert milk["messages"] != butter["messages"]


def test_findings_go_back_in_the_same_conversation(work: Work) -> None:
    with Loopback(say(BAD_REPLY), say("I would rather not write code."), say()) as server:
        made = work(server)
    assert made.source == GOOD and [turn.round for turn in made.turns] == [1, 2, 3]
    first, second, third = (request.body["messages"] for request in server.requests)
    assert [message["role"] for message in third] == ["user", "assistant", "user", "assistant", "user"]
    assert second[:1] == first and third[:3] == second
    assert second[1]["content"][0]["text"] == BAD_REPLY
    assert "It is 0.0 at all 57 moments." in second[2]["content"][0]["text"]
    assert "holds no program" in third[4]["content"][0]["text"]
    assert [name for name in work.files() if "/" in name] == [
        "candidates/01.py",
        "candidates/03.py",
        "findings/01.txt",
        "findings/02.txt",
        "replies/01.json",
        "replies/02.json",
        "replies/03.json",
    ]
    assert work.json("usage.json")["tokens"]["input"] == 3 * 2100
    assert work.json("prompt.json")["messages"] == third


def test_a_whole_conversation_comes_from_the_cache(work: Work) -> None:
    with Loopback(say(BAD_REPLY), say()) as server:
        work(server)
        made = work(server)
        assert len(server.requests) == 2
    assert all(turn.reply.from_cache for turn in made.turns) and made.source == GOOD


def fails(work: Work, server: Loopback, **changes: object) -> str:
    with pytest.raises(LlmError) as caught:
        work(server, **changes)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_after_the_last_round_one_line_says_where_the_replies_are(work: Work) -> None:
    with Loopback(say(BAD_REPLY)) as server:
        said = fails(work, server, rounds=2)
        assert len(server.requests) == 2
    assert "in 2 rounds" in said and "The reward is constant." in said and "--from-file" in said
    assert f"replies, programs and findings are kept in {work.folder}" in said
    assert {"replies/01.json", "replies/02.json", "findings/02.txt", "digests.json"} <= set(work.files())


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (say("I can't.", "refusal", {"type": "refusal", "category": "cyber"}), "refused to write the reward (cyber)"),
        (say(GOOD_REPLY[:900], "max_tokens"), "raise gen_reward.max_tokens"),
        (say(""), "empty"),
    ],
    ids=["refusal", "truncation", "empty"],
)
def test_a_reply_without_an_answer_is_kept_and_not_paid_for_twice(work: Work, answer: object, says: str) -> None:
    with Loopback(answer) as server:  # type: ignore[arg-type]
        for _ in range(2):
            said = fails(work, server)
            assert says in said and "are kept in" in said
            assert "replies/01.json" in work.files()
        assert len(server.requests) == 1
    with Loopback(answer, say()) as server:  # type: ignore[arg-type]
        fails(work, server)
        assert work(server, fresh=True).source == GOOD


def test_a_server_lost_in_the_second_round_loses_no_reply(work: Work) -> None:
    with Loopback(say(BAD_REPLY), cut(5)) as server:
        said = fails(work, server)
    assert "connection was lost" in said and "are kept in" in said
    assert "replies/01.json" in work.files() and "replies/02.json" not in work.files()
    broken = work.json("replies/02-broken-1.json")  # paid for as well
    assert broken["usage"]["input_tokens"] == 2100 and broken["content"][0]["text"] == GOOD_REPLY[: 2 * PIECE]


def test_a_failure_before_any_reply_names_no_folder(work: Work) -> None:
    with Loopback(status(401, "authentication_error", "no")) as server:
        assert "kept in" not in fails(work, server)
    assert not (work.root / "cache").exists() and not work.folder.exists()


def test_a_cache_that_cannot_be_written_loses_no_reply(work: Work) -> None:
    (work.root / "cache").write_text("in the way")
    with Loopback() as server:
        assert work(server).source == GOOD
    assert "replies/01.json" in work.files()
    assert len(work.warnings) == 1 and "will be paid for again" in work.warnings[0]


def test_half_a_surrogate_pair_is_kept_as_a_question_mark(work: Work) -> None:
    with Loopback(say("An arm \ud83e in a kitchen.\n" + GOOD_REPLY)) as server:
        assert work(server).source == GOOD
    assert work.json("replies/01.json")["message"]["content"][0]["text"].startswith("An arm ? in a kitchen.")


@pytest.mark.parametrize(
    "reply",
    [
        f"First a sketch:\n```python\ndef compute_reward(state, info):\n    ...\n```\nNow in full:\n{GOOD_REPLY}",
        f"{GOOD_REPLY}\nYou can try it:\n```bash\ntgrpo verify-reward reward.py\n```",
        GOOD_REPLY.rpartition("```")[0],
    ],
    ids=["sketch first", "another block after", "a fence that never closes"],
)
def test_the_program_is_found_among_blocks_of_a_streamed_reply(work: Work, reply: str) -> None:
    with Loopback(say(reply)) as server:
        assert work(server).source == GOOD


def test_nothing_is_written_over(work: Work, tmp_path: Path) -> None:
    (tmp_path / "generation-0").mkdir()
    with Loopback() as server, pytest.raises(LlmError, match="exists already"):
        generate(request_for(), quick(), examine, tmp_path / "generation-0", client=work.connect(server))
    assert not server.requests


def test_the_key_is_in_no_file(work: Work) -> None:
    with Loopback(say(BAD_REPLY), say()) as server:
        work(server)
    texts = [path.read_text() for path in work.root.rglob("*") if path.is_file()]
    assert len(texts) > 8 and not any(KEY in text for text in texts)
