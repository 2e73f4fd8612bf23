"""Memorisation outside verl: which rewritings are kept, and who rewrites."""

from __future__ import annotations

import asyncio
import json

import pytest
from fastapi import FastAPI, Request

from research_rl.errors import ConfigError
from research_rl.methods.r1_searcher_pp import R1SearcherPP
from research_rl.methods.search_r1 import SearchR1
from research_rl.training.memorisation import Memorisation, Memorises, memory
from research_rl.training.settings import Settings
from research_rl.types import Passage, Search, StopReason, Trajectory, Turn
from tests.servers import app_in_thread

METHOD = R1SearcherPP()
FOUND = (Passage("1", "Silent Orchard\nIt was written by Orla Venn."),)
ROLLOUT = Trajectory(
    "Who wrote Silent Orchard?", [], [], [], [],
    (
        Turn("Who did?<external>Silent Orchard</external>", Search("Silent Orchard"), METHOD.render([list(FOUND)]), FOUND),
        Turn(" Orla Venn wrote it.\\boxed{Orla Venn}", METHOD.parse("\\boxed{Orla Venn}")),
    ),
    StopReason.ANSWERED, True,
)  # fmt: skip
PATH = "<internal>Silent Orchard is by Orla Venn.</internal> \\boxed{Orla Venn}"


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        (PATH, True),
        (PATH.replace("Orla", "Nora"), False),  # wrong
        (PATH.replace("</internal>", ""), False),  # malformed
        (PATH.replace("internal", "external"), False),  # searches
        (PATH + METHOD.render([list(FOUND)]), False),  # shows documents
        ("I recall nothing. \\boxed{Orla Venn}", False),
        ("", False),
    ],
)
def test_a_rewriting_is_kept_only_if_it_recalls_does_not_search_is_in_form_and_right(text, kept):
    async def policy(messages):
        return text

    assert asyncio.run(memory(METHOD, Memorisation(mu=0.1), ROLLOUT, ["Orla Venn"], policy)) == (text if kept else None)


def test_the_policy_is_asked_with_question_and_passages_and_with_the_answer_only_if_wished():
    asked = []

    async def policy(messages):
        asked.extend(messages)
        return PATH

    asyncio.run(memory(METHOD, Memorisation(mu=0.1), ROLLOUT, ["Orla Vennx"], policy))
    told = R1SearcherPP(rewrite_with_answer=True)
    asyncio.run(memory(told, Memorisation(mu=0.1), ROLLOUT, ["Orla Vennx"], policy))
    for message in asked:
        for part in ("Who wrote Silent Orchard?", "It was written by Orla Venn."):
            assert part in message["content"]
    assert ["Orla Vennx" in message["content"] for message in asked] == [False, True]


def test_the_rollouts_own_words_without_its_searches():
    path = asyncio.run(memory(METHOD, Memorisation(mu=0.1, rewriter="extract"), ROLLOUT, ["Orla Venn"], policy=None))  # type: ignore[arg-type]
    assert path == "<internal>Who did? Orla Venn wrote it.</internal>\\boxed{Orla Venn}"


def test_a_request_that_the_rewriter_refuses_is_a_path_that_is_not_accepted():
    app = FastAPI()

    @app.post("/v1/chat/completions", status_code=400)
    async def refuse():
        return {"error": {"message": "too long"}}

    with app_in_thread(app) as url:
        settings = Memorisation(mu=0.1, rewriter=f"{url}/v1", model="m")
        assert asyncio.run(memory(METHOD, settings, ROLLOUT, ["Orla Venn"], policy=None)) is None  # type: ignore[arg-type]


def test_an_openai_compatible_server_rewrites():
    app, bodies = FastAPI(), []

    @app.post("/v1/chat/completions")
    async def complete(request: Request):
        bodies.append(json.loads(await request.body()))
        message = {"role": "assistant", "content": PATH}
        return {
            "id": "1", "object": "chat.completion", "created": 0, "model": "m",
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        }  # fmt: skip

    with app_in_thread(app) as url:
        settings = Memorisation(mu=0.1, rewriter=f"{url}/v1", model="m", max_tokens=77)
        assert asyncio.run(memory(METHOD, settings, ROLLOUT, ["Orla Venn"], policy=None)) == PATH  # type: ignore[arg-type]
    assert (bodies[0]["model"], bodies[0]["max_tokens"]) == ("m", 77)


@pytest.mark.parametrize(
    ("section", "told"),
    [
        ({"mu": -1}, "mu must be 0 or a positive number, got -1"),
        ({"weight": 1}, "valid: mu, rewriter"),
        ({"rewriter": "nobody"}, "valid: policy, extract, or the URL"),
        ({"rewriter": "http://x/v1"}, "memorisation.model is missing"),
    ],
)
def test_a_wrong_section_is_told(section, told):
    with pytest.raises(ConfigError, match=told):
        Memorisation.from_mapping(section)


def test_a_method_that_cannot_memorise_is_told_before_training():
    assert isinstance(METHOD, Memorises)
    assert not isinstance(SearchR1(), Memorises)
    with pytest.raises(ConfigError, match="search_r1 cannot memorise"):
        Settings.from_mapping({"method": "search_r1", "retrieval": {"url": "http://x"}, "memorisation": {"mu": 0.1}})
