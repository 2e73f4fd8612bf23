"""The retrieval client: it waits outages out, and never turns one into an empty result."""

from __future__ import annotations

import asyncio
import gzip
import json
import pickle
import time

import httpx
import pytest

from research_rl.errors import ConfigError, DataError, QueryFailedError, RetrievalError, WrongServiceError
from research_rl.retrieval import RetrievalClient, RetrievalSettings
from research_rl.training.settings import Settings
from research_rl.types import OpenedPage, Passage

GOOD = [[[{"id": "1", "contents": "a"}]], [[2.5]]]


def client(handler, **settings) -> RetrievalClient:
    """A client whose network is `handler`."""
    options = {"deadline_s": 1.0, **settings}
    return RetrievalClient(RetrievalSettings("http://test:1", **options), transport=httpx.MockTransport(handler))


def telling(answers):
    """Return a network that gives these answers in turn, or raises those that are errors."""

    def handler(request):
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    return handler


async def test_a_search_returns_passages_with_plain_scores():
    async with client(lambda request: httpx.Response(200, json=GOOD)) as retrieval:
        assert await retrieval.search(["q"], 1) == [[Passage("1", "a", 2.5)]]


async def test_an_outage_is_waited_out():
    answers = iter([httpx.ConnectError("refused"), httpx.Response(503), httpx.Response(429), httpx.Response(200, json=GOOD)])

    async with client(telling(answers), deadline_s=20) as retrieval:
        assert await retrieval.search(["q"], 1)


async def test_a_connection_that_is_lost_as_it_is_made_is_an_outage_and_another_fault_stays_what_it_is():
    lost = AttributeError("'NoneType' object has no attribute 'getpeername'")
    async with client(telling(iter([lost, httpx.Response(200, json=GOOD)])), deadline_s=20) as retrieval:
        assert await retrieval.search(["q"], 1)
    async with client(telling(iter([AttributeError("of ours")]))) as retrieval:
        with pytest.raises(AttributeError, match="of ours"):
            await retrieval.search(["q"], 1)


async def test_a_service_that_never_returns_is_one_error_that_names_the_url():
    def handler(request):
        raise httpx.ConnectError("refused")

    async with client(handler, deadline_s=0.5) as retrieval:
        with pytest.raises(RetrievalError, match="http://test:1 gave no answer"):
            await retrieval.search(["q"], 1)
        assert retrieval.outage_s > 0.1


async def test_a_service_that_was_never_there_is_told_long_before_the_deadline():
    def handler(request):
        raise httpx.ConnectError("refused")

    async with client(handler, deadline_s=3_600, unreachable_s=0.5) as retrieval:
        with pytest.raises(RetrievalError, match=r"nothing answers: .*http://test:1 could not be reached .*Is it running"):
            await retrieval.search(["q"], 1)


@pytest.mark.parametrize("first", [httpx.Response(503), httpx.Response(200, json=GOOD), httpx.ReadTimeout("slow")])
async def test_a_service_that_was_reached_once_is_waited_for_until_the_deadline(first):
    gone = [httpx.ConnectError("refused")] * 2
    answers = iter([first, *gone, httpx.Response(200, json=GOOD), *gone, httpx.Response(200, json=GOOD)])
    async with client(telling(answers), deadline_s=60, unreachable_s=0.001) as retrieval:
        for _ in range(2):
            assert await retrieval.search(["q"], 1)


def test_a_training_waits_for_its_service_and_a_command_does_not():
    section = {"method": "research", "retrieval": {"url": "http://test:1"}}
    assert Settings.from_mapping(section).retrieval_for("").unreachable_s is None
    assert RetrievalSettings("http://test:1").unreachable_s == 10


async def test_a_machine_that_stood_still_until_the_deadline_asks_once_more_before_it_calls_that_an_outage():
    asked = []

    async def handler(request):
        asked.append(request)
        if len(asked) == 1:
            await asyncio.sleep(0)
            time.sleep(0.6)
            await asyncio.sleep(60)
        return httpx.Response(200, json=GOOD)

    async with client(handler, deadline_s=0.5) as retrieval:
        assert await retrieval.search(["q"], 1)
        assert len(asked) == 2
        assert retrieval.outage_s == 0


async def test_silence_is_no_outage_and_the_clock_starts_at_the_first_failure_after_an_answer():
    up = True

    def handler(request):
        return httpx.Response(200, json=GOOD) if up else httpx.Response(503)

    async with client(handler, deadline_s=0.3) as retrieval:
        await retrieval.search(["q"], 1)
        await asyncio.sleep(0.4)  # a weight update: nobody asks
        assert retrieval.outage_s == 0
        up = False
        with pytest.raises(RetrievalError):
            await retrieval.search(["q"], 1)
        assert 0.2 < retrieval.outage_s < 0.4
        up = True
        await retrieval.search(["q"], 1)
        assert retrieval.outage_s == 0


async def test_a_query_that_fails_while_others_are_answered_is_that_querys_failure_and_no_outage():
    def handler(request):
        (query,) = json.loads(request.content)["query"]
        return httpx.Response(500 if query == "poison" else 200, json=GOOD)

    async with client(handler, deadline_s=0.5) as retrieval:

        async def others():
            for _ in range(8):
                await asyncio.sleep(0.1)
                await retrieval.search(["q"], 1)

        asking = asyncio.create_task(others())
        with pytest.raises(QueryFailedError, match="Others were answered meanwhile; the first query: 'poison'"):
            await retrieval.search(["poison"], 1)
        await asking
        assert retrieval.outage_s == 0


async def test_what_was_under_way_when_the_service_died_tells_an_outage():
    calls = []

    async def handler(request):
        calls.append(1)
        if len(calls) == 1:
            await asyncio.sleep(0.1)
        elif len(calls) == 2:
            return httpx.Response(200, json=GOOD)
        return httpx.Response(503)

    async with client(handler, deadline_s=0.5) as retrieval:
        slow = asyncio.create_task(retrieval.search(["asked first"], 1))
        await asyncio.sleep(0.02)
        await retrieval.search(["answered"], 1)
        with pytest.raises(RetrievalError, match="Is it running") as caught:
            await slow
        assert not isinstance(caught.value, QueryFailedError)


@pytest.mark.parametrize(("status", "alone"), [(400, True), (413, True), (422, True), (401, False), (404, False)])
async def test_a_refused_query_is_told_from_a_service_that_refuses_all(status, alone):
    async with client(lambda request: httpx.Response(status)) as retrieval:
        with pytest.raises(QueryFailedError if alone else WrongServiceError):
            await retrieval.search(["q"], 1)
        assert retrieval.outage_s == 0


async def test_a_service_that_hangs_is_given_up_at_the_deadline():
    async def handler(request):
        await asyncio.sleep(60)

    async with client(handler, deadline_s=0.3) as retrieval:
        started = time.monotonic()
        with pytest.raises(RetrievalError, match=r"deadline 0\.3 s"):
            await retrieval.search(["q"], 1)
    assert time.monotonic() - started < 5


async def test_a_query_that_is_too_long_is_cut_and_not_refused():
    def handler(request):
        (query,) = json.loads(request.content)["query"]
        return httpx.Response(200, json=[[[{"id": "1", "contents": query}]], [[1.0]]])

    async with client(handler, max_query_characters=10) as retrieval:
        ((passage,),) = await retrieval.search(["x" * 30_000], 1)
    assert passage.contents == "x" * 10


async def test_attempts_are_bounded():
    seen = []

    def handler(request):
        seen.append(1)
        return httpx.Response(500)

    async with client(handler, deadline_s=60, max_attempts=3) as retrieval:
        with pytest.raises(RetrievalError, match="3 attempts"):
            await retrieval.search(["q"], 1)
    assert len(seen) == 3


@pytest.mark.parametrize(
    "answer",
    [
        httpx.Response(400, text="blank"),
        httpx.Response(200, text="<html>"),
        httpx.Response(200, json=[[], []]),
        httpx.Response(200, json=[[[{"id": "1"}]], [[1.0]]]),
        httpx.Response(200, json=[[[{"id": "1", "contents": "a"}]], [[]]]),
    ],
)
async def test_a_refusal_or_a_foreign_answer_is_an_error_at_once(answer):
    calls = []

    def handler(request):
        calls.append(1)
        return answer

    async with client(handler) as retrieval:
        with pytest.raises(RetrievalError):
            await retrieval.search(["q"], 1)
    assert len(calls) == 1


@pytest.mark.parametrize("options", [{"url": "localhost:8000"}, {"url": "http://x", "deadline_s": 0}])
def test_settings_that_cannot_work_are_refused(options):
    with pytest.raises(ConfigError):
        RetrievalSettings(**options)


@pytest.mark.parametrize("kind", [RetrievalError, QueryFailedError, WrongServiceError, ConfigError, DataError])
def test_errors_survive_pickling(kind):
    assert str(pickle.loads(pickle.dumps(kind("why")))) == "why"


@pytest.mark.parametrize(
    "fault",
    [
        httpx.Response(200, text='[[[{"id": "1", "con'), httpx.Response(200, text="<html>proxy</html>"), httpx.Response(200, json=[[], []]),
        httpx.Response(500), httpx.ReadError("reset in the middle of the body"), httpx.ConnectError("Name or service not known"),
        httpx.ReadTimeout("no answer"), httpx.DecodingError("what is called gzip is none"),
    ],
)  # fmt: skip
async def test_a_service_that_has_answered_may_answer_nonsense_for_a_moment_and_no_passage_is_made_of_it(fault):
    answers = iter([httpx.Response(200, json=GOOD), fault, httpx.Response(200, json=GOOD)])

    async with client(telling(answers), deadline_s=20) as retrieval:
        assert await retrieval.search(["q"], 1) == await retrieval.search(["q"], 1) == [[Passage("1", "a", 2.5)]]
        assert next(answers, None) is None


@pytest.mark.parametrize("contents", [None, 7, {"text": "x"}, ["x"]])
async def test_contents_that_are_no_text_are_no_passage(contents):
    answers = iter([httpx.Response(200, json=[[[{"id": "1", "contents": contents}]], [[1.0]]])])
    async with client(telling(answers)) as retrieval:
        with pytest.raises(WrongServiceError, match="contents must be a text"):
            await retrieval.search(["q"], 1)


async def test_half_a_surrogate_pair_is_replaced_and_more_passages_than_asked_for_are_left_out():
    body = json.dumps([[[{"id": "1", "contents": "t\n\ud800x"}] * 9], [[1.0] * 9]])
    async with client(telling(iter([httpx.Response(200, text=body)]))) as retrieval:
        assert await retrieval.search(["q"], 2) == [[Passage("1", "t\n\ufffdx", 1.0)] * 2]


@pytest.mark.parametrize("charset", ["punycode", "zlib", "idna", "undefined"])
async def test_the_character_set_that_a_service_names_is_not_used(charset):
    answer = httpx.Response(200, content=b"x" * 300_000, headers={"content-type": f"text/html; charset={charset}"})
    async with client(telling(iter([answer]))) as retrieval:
        with pytest.raises(WrongServiceError, match="not ReSearch's format: 'xxx"):
            await retrieval.search(["q"], 1)


@pytest.mark.parametrize("packed", [False, True])
async def test_an_answer_that_is_too_large_is_an_outage_and_is_not_kept(packed, monkeypatch):
    monkeypatch.setattr("research_rl.retrieval._MOST_BYTES", 1_000)
    body, headers = b"[" * 100_000, {"content-encoding": "gzip"} if packed else {}
    answer = httpx.Response(200, content=gzip.compress(body) if packed else body, headers=headers)
    async with client(lambda request: answer, deadline_s=0.3) as retrieval:
        with pytest.raises(RetrievalError, match="more than 1,000 bytes"):
            await retrieval.search(["q"], 1)


async def test_an_answer_nested_too_deeply_is_another_format():
    async with client(telling(iter([httpx.Response(200, text="[" * 100_000)]))) as retrieval:
        with pytest.raises(WrongServiceError, match="not ReSearch's format"):
            await retrieval.search(["q"], 1)


async def test_nonsense_for_good_is_an_outage_and_never_an_empty_result():
    answers = iter([httpx.Response(200, json=GOOD)])

    async with client(lambda request: next(answers, httpx.Response(200, json=[[], []])), deadline_s=0.5) as retrieval:
        await retrieval.search(["q"], 1)
        with pytest.raises(RetrievalError, match="0 results to 1 queries") as error:
            await retrieval.search(["q"], 1)
    assert not isinstance(error.value, WrongServiceError)


async def test_another_index_behind_the_same_address_ends_the_run():
    served = iter(["a", "a", "b"])
    async with client(lambda request: httpx.Response(200, json=GOOD, headers={"X-Index-Id": next(served)})) as retrieval:
        await retrieval.search(["q"], 1)
        await retrieval.search(["q"], 1)
        with pytest.raises(WrongServiceError, match=r"now searches the index b, but this run began with a.*index_id=b"):
            await retrieval.search(["q"], 1)


async def test_an_index_that_is_named_is_the_only_one_that_may_answer():
    async with client(lambda request: httpx.Response(200, json=GOOD, headers={"X-Index-Id": "b"}), index_id="a") as retrieval:
        with pytest.raises(WrongServiceError, match="now searches the index b"):
            await retrieval.search(["q"], 1)


PAGE = {"index_id": "i", "id": "1", "title": "T", "page": 2, "pages": 3, "passages": [{"id": "7", "contents": "T\nx"}]}


async def test_a_document_is_opened_at_a_page_and_an_outage_is_waited_out():
    answers = iter([httpx.ConnectError("refused"), httpx.Response(503), httpx.Response(200, json=PAGE)])
    async with client(telling(answers), deadline_s=20) as retrieval:
        assert await retrieval.open("1", 2) == OpenedPage([Passage("7", "T\nx")], 2, 3)


@pytest.mark.parametrize(("status", "reason"), [(404, "passage"), (400, "page")])
async def test_what_cannot_be_opened_is_none_and_no_failure(status, reason):
    async with client(lambda request: httpx.Response(status, json={"detail": "no", "reason": reason})) as retrieval:
        assert await retrieval.open("1", 9) is None


@pytest.mark.parametrize(("passage", "page"), [("x" * 5_000, None), ("1", 10**400), ("1", -1)])
async def test_what_nobody_can_have_shown_is_not_asked_for(passage, page):
    def handler(request):
        raise AssertionError("asked")

    async with client(handler) as retrieval:
        assert await retrieval.open(passage, page) is None


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (httpx.Response(404, json={"detail": "Not Found", "reason": "path"}), WrongServiceError),  # a service without documents
        (httpx.Response(404, text="not found"), WrongServiceError),
        (httpx.Response(422, json={"detail": []}), QueryFailedError),
        (httpx.Response(200, json={"passages": "x"}), WrongServiceError),
        (httpx.Response(200, text="<html>"), WrongServiceError),
    ],
)
async def test_a_refusal_to_open_that_is_not_about_the_passage_is_an_error(answer, error):
    async with client(lambda request: answer) as retrieval:
        with pytest.raises(error):
            await retrieval.open("1")
