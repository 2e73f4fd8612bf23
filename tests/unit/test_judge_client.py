"""A judge as reward: a real server that speaks OpenAI's chat completions, asked once, bounded, and never guessed for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse

from research_rl.errors import ConfigError, JudgeError
from research_rl.judge import JudgeSettings
from research_rl.judge_client import Judge, try_out
from tests.servers import app_in_thread, free_port

WITHOUT_VERDICT = {"choices": [{"message": {"content": "Well."}}]}
TROUBLE = [(503, "busy"), (429, "slowly"), (200, "<html>a proxy</html>"), (200, {"choices": []}), (200, WITHOUT_VERDICT)]
REFUSALS = [
    (401, "Is the key right"),
    (403, "Is this key allowed"),
    (404, "Does the URL end in /v1"),
    (307, "The URL redirects"),
]


@dataclass
class Stub:
    """What the server was asked, and how it answers; `replies` come first, one for each request: (status, body)."""

    url: str = ""
    asked: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    say: Callable[[str], str] = lambda prediction: str("Oslo" in prediction)
    replies: list[tuple[int, Any]] = field(default_factory=list)
    hangs: bool = False
    at_once: int = 0
    most_at_once: int = 0

    async def answer(self, request: Request) -> Any:
        body = await request.json()
        self.asked.append(body)
        self.keys.append(request.headers.get("authorization"))
        if self.hangs:
            while self.hangs:
                await asyncio.sleep(0.01)
            return PlainTextResponse("nobody waits for this any more", 503)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        await asyncio.sleep(0.02)
        self.at_once -= 1
        if self.replies:
            status, told = self.replies.pop(0)
            return PlainTextResponse(told, status) if isinstance(told, str) else JSONResponse(told, status)
        said = self.say(body["messages"][0]["content"].split("predicted answer: ")[1])
        return {"choices": [{"message": {"role": "assistant", "content": said}}], "usage": {"prompt_tokens": 7}}


@pytest.fixture(scope="module")
def server():
    stub, app = Stub(), FastAPI()

    @app.post("/v1/chat/completions")
    async def completions(request: Request):
        return await stub.answer(request)

    with app_in_thread(app) as url:
        stub.url = f"{url}/v1"
        yield stub


@pytest.fixture
def stub(server):
    fresh = Stub()
    for name in ("asked", "keys", "say", "replies", "at_once", "most_at_once"):
        setattr(server, name, getattr(fresh, name))
    yield server
    server.hangs = False


def settings(stub: Stub, **options: Any) -> JudgeSettings:
    return JudgeSettings.from_mapping({"url": stub.url, "model": "m", "deadline_s": 10, **options})


async def judgements(judge: Judge, *answers: str, question: str = "Which city?", golden: tuple[str, ...] = ("oslo",)):
    """Judge answers to a question at the same time, as the rollouts of a group end."""
    try:
        return await asyncio.gather(*(judge.judge(question, golden, answer) for answer in answers))
    finally:
        await judge.close()


async def test_an_answer_that_is_no_exact_match_is_asked_about_and_the_verdict_counts(stub):
    right, wrong = await judgements(Judge(settings(stub)), "the city of Oslo", "Bergen")
    assert (right.score, wrong.score) == (1.0, 0.0)
    assert right.figures() == {"judge/asked": 1.0, "judge/cached": 0.0, "judge/fallback": 0.0, "judge/seconds": right.seconds}
    assert right.seconds > 0
    body = stub.asked[0]
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("m", 0.0, 16)
    assert stub.keys[0] is None


async def test_an_exact_match_is_right_and_an_empty_answer_wrong_without_being_asked_about(stub):
    exact, empty = await judgements(Judge(settings(stub)), "The Oslo!", "  ")
    assert (exact.score, empty.score, stub.asked) == (1.0, 0.0, [])
    assert exact.figures()["judge/asked"] == 0
    await judgements(Judge(settings(stub, ask_when="always")), "The Oslo!", "")
    assert len(stub.asked) == 1


async def test_an_answer_without_a_word_is_wrong_whatever_a_judge_would_say(stub):
    stub.say = lambda _: "True"
    found = await judgements(Judge(settings(stub, ask_when="always")), ":", "…")
    assert ([one.score for one in found], stub.asked) == ([0.0] * 2, [])
    (asked,) = await judgements(Judge(settings(stub)), "+", golden=("+", "plus"))
    assert asked.score == 1.0


async def test_an_answer_of_which_normalisation_leaves_nothing_is_no_exact_match(stub):
    (found,) = await judgements(Judge(settings(stub)), "the", golden=("A",))
    assert (found.score, len(stub.asked)) == (0.0, 1)


async def test_one_answer_of_a_group_is_asked_about_once_and_remembered(stub):
    judge = Judge(settings(stub))
    found = await asyncio.gather(
        *(judge.judge("Which?", ["oslo"], answer) for answer in ["in Oslo", "in Oslo ", "Rome", "in Oslo"])
    )
    assert [one.score for one in found] == [1.0, 1.0, 0.0, 1.0]
    assert [one.asked for one in found] == [True, False, True, False]
    assert [one.cached for one in found] == [False, True, False, True]
    later = await judge.judge("Which?", ["oslo"], "in Oslo")
    assert (later.cached, later.seconds, len(stub.asked)) == (True, 0.0, 2)
    await judge.judge("Which?", ["oslo", "Christiania"], "in Oslo")  # others are golden
    await judge.judge("Which one?", ["oslo"], "in Oslo")
    assert len(stub.asked) == 4
    await judge.close()


async def test_the_memory_has_room_for_as_many_as_it_is_told(stub):
    judge = Judge(settings(stub, cache=1))
    for answer in ("a", "b", "b", "a"):
        await judge.judge("Which?", ["oslo"], answer)
    await judge.close()
    assert len(stub.asked) == 3


async def test_a_file_keeps_verdicts_for_the_next_run_but_not_for_another_model_or_prompt(stub, tmp_path):
    cache = tmp_path / "judge" / "cache.jsonl"
    await judgements(Judge(settings(stub, cache=str(cache))), "in Oslo", "Rome")
    with cache.open("a") as file:
        file.write(cache.read_text()[:30])  # a kill cut the last line
    (found, new) = await judgements(Judge(settings(stub, cache=str(cache))), "in Oslo", "Bergen")
    assert (found.score, found.cached, new.cached, len(stub.asked)) == (1.0, True, False, 3)
    await judgements(Judge(settings(stub, cache=str(cache))), "Bergen")
    assert len(stub.asked) == 3
    await judgements(Judge(settings(stub, cache=str(cache), model="other")), "Bergen")
    await judgements(Judge(settings(stub, cache=str(cache), prompt_file="judge_research")), "Bergen")
    assert len(stub.asked) == 5


async def test_a_file_that_cannot_be_written_is_told_once_and_costs_no_verdict(stub, tmp_path, capsys):
    (tmp_path / "file").touch()
    found = await judgements(Judge(settings(stub, cache=str(tmp_path / "file" / "cache.jsonl"))), "in Oslo", "Rome")
    assert [one.score for one in found] == [1.0, 0.0]
    assert capsys.readouterr().err.count("CANNOT BE WRITTEN") == 1


async def test_no_more_requests_are_made_at_once_than_the_settings_allow(stub):
    found = await judgements(Judge(settings(stub, concurrency=3)), *(f"answer {number}" for number in range(12)))
    assert len(found) == len(stub.asked) == 12
    assert stub.most_at_once == 3


@pytest.mark.parametrize("trouble", TROUBLE)
async def test_what_may_pass_is_asked_again(stub, trouble):
    stub.replies = [trouble]
    (found,) = await judgements(Judge(settings(stub)), "in Oslo")
    assert (found.score, len(stub.asked)) == (1.0, 2)


async def test_an_outage_leaves_the_answer_to_the_rule_for_every_rollout_that_gave_it(stub):
    stub.replies = [(500, "down")] * 200
    found = await judgements(Judge(settings(stub, deadline_s=0.3)), "in Oslo", "in Oslo")
    assert [one.score for one in found] == [None, None]
    assert [one.figures()["judge/fallback"] for one in found] == [1.0, 1.0]
    assert "HTTP 500: down" in found[0].said


async def test_a_judge_that_is_not_there_leaves_the_answer_to_the_rule():
    gone = JudgeSettings.from_mapping({"url": f"http://127.0.0.1:{free_port()}/v1", "model": "m", "deadline_s": 0.2})
    (found,) = await judgements(Judge(gone), "in Oslo")
    assert found.score is None


async def test_a_judge_that_hangs_leaves_the_answer_to_the_rule_and_the_time_out_is_told(stub):
    stub.hangs = True
    (found,) = await judgements(Judge(settings(stub, deadline_s=0.2)), "in Oslo")  # no attempt ends before the deadline
    assert (found.score, "no answer at all" in found.said) == (None, True)
    for deadline_s in (0.4, 1.6, 6.4, 25.6):  # a machine under load needs longer until the first attempt has timed out
        (found,) = await judgements(Judge(settings(stub, timeout_s=deadline_s / 8, deadline_s=deadline_s)), "in Oslo")
        assert found.score is None
        if "ReadTimeout" in found.said:
            break
    assert "ReadTimeout" in found.said


async def test_a_request_that_hangs_is_given_up_after_its_time_out_and_made_again(stub):
    stub.hangs = True
    judging = asyncio.create_task(judgements(Judge(settings(stub, timeout_s=0.5, deadline_s=60)), "in Oslo"))
    while len(stub.asked) < 2:  # with the default deadline alone there would be one
        await asyncio.sleep(0.01)
    stub.hangs = False
    (found,) = await judging
    assert found.score == 1.0


async def test_a_reply_that_is_never_a_verdict_is_asked_for_three_times_and_not_remembered(stub):
    stub.say = lambda _: "It depends."
    judge = Judge(settings(stub))
    found = await judge.judge("Which?", ["oslo"], "in Oslo")
    assert (found.score, len(stub.asked)) == (None, 3)
    assert "a reply without a verdict: 'It depends.'" in found.said
    stub.say = lambda _: "True"
    assert (await judge.judge("Which?", ["oslo"], "in Oslo")).score == 1.0
    await judge.close()


async def test_a_prompt_that_is_refused_is_not_asked_again(stub):
    stub.replies = [(400, "too long")]
    (found,) = await judgements(Judge(settings(stub)), "in Oslo")
    assert (found.score, len(stub.asked)) == (None, 1)


async def test_with_fallback_stop_a_missing_verdict_ends_the_run(stub):
    stub.replies = [(400, "too long")]
    with pytest.raises(JudgeError, match=r"HTTP 400: too long.*fallback=stop"):
        await judgements(Judge(settings(stub, fallback="stop")), "in Oslo")


@pytest.mark.parametrize(("status", "remedy"), REFUSALS)
async def test_a_server_that_refuses_everything_ends_the_run_at_once_and_the_key_is_not_told(stub, monkeypatch, status, remedy):
    monkeypatch.setenv("MY_KEY", "sk-secret")
    stub.replies = [(status, "the key sk-secret is wrong")]
    chosen = settings(stub, api_key_env="MY_KEY")
    with pytest.raises(JudgeError, match=remedy) as ended:
        await judgements(Judge(chosen), "in Oslo")
    assert stub.keys == ["Bearer sk-secret"]
    assert "the key *** is wrong" in str(ended.value)
    assert "secret" not in f"{ended.value} {chosen}"


async def test_a_key_that_is_not_in_the_environment_is_told_by_its_name(stub, monkeypatch):
    monkeypatch.delenv("MY_KEY", raising=False)
    with pytest.raises(ConfigError, match="MY_KEY: this variable is not set"):
        Judge(settings(stub, api_key_env="MY_KEY"))


async def test_more_of_the_request_may_be_set_and_keys_taken_out(stub):
    await judgements(
        Judge(settings(stub, body={"chat_template_kwargs": {"enable_thinking": False}, "max_tokens": None})), "Rome"
    )
    assert stub.asked[0]["chat_template_kwargs"] == {"enable_thinking": False}
    assert "max_tokens" not in stub.asked[0]


@pytest.mark.parametrize(
    ("say", "raised"),
    [
        (lambda text: str("Paris" in text), None),
        (lambda _: "True", "'Berlin' right"),
        (lambda _: "False", "Paris' wrong"),
    ],
)
async def test_a_judge_is_tried_out_on_a_right_and_a_wrong_answer(stub, say, raised):
    stub.say = say
    if raised:
        with pytest.raises(ConfigError, match=raised):
            await try_out(settings(stub), 5)
    else:
        assert await try_out(settings(stub), 5) > 0
        assert len(stub.asked) == 2
