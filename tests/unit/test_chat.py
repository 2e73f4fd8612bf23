"""The chat in the terminal, and `research-rl`, which names every command."""

from __future__ import annotations

import asyncio
import io
import json
import socket
import sys

import httpx
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from rich.console import Console

from research_rl import cli
from research_rl.errors import MissingExtraError
from research_rl.inference.openai_server import CompletionsServer
from research_rl.retrieval import RetrievalClient, RetrievalSettings
from research_rl.web.chat import Chat
from research_rl.web.chat_page import _events, create_chat
from research_rl.web.page import own_hosts
from research_rl.web.serving import serve_page
from tests.unit.test_agent import agent, opened, service  # noqa: F401 (a fixture)


def chat_with(lines: list[str], monkeypatch) -> str:
    out = io.StringIO()
    console = Console(file=out, width=100)
    given = iter(lines)

    def read(prompt):
        try:
            return next(given)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr(console, "input", read)
    asyncio.run(Chat(agent(), console).run())
    return out.getvalue()


def test_a_person_sees_the_search_opens_a_passage_and_gets_the_answer(opened, monkeypatch):  # noqa: F811
    shown = chat_with(["Who is it?", "/1", "/searches", "/7", "", "/quit", "never asked"], monkeypatch)
    assert "<think>t</think>" in shown
    assert "search who" in shown
    assert "/1 Orla  is her name" in shown
    assert "─ 7 ─" in shown  # the opened passage
    assert shown.count("Ask a question.") == 2  # at the beginning, and for a passage that is not there
    assert "Orla" in shown.split("─ answer ─")[1].split("╯")[0]
    assert "never asked" not in shown


def test_an_outage_is_told_and_the_chat_goes_on(opened, monkeypatch):  # noqa: F811
    answers = iter([httpx.Response(500), httpx.Response(500)])

    def flaky(request):
        return next(answers, None) or service(request)

    monkeypatch.setattr(
        "research_rl.inference.agent.RetrievalClient",
        lambda settings: RetrievalClient(RetrievalSettings(settings.url, max_attempts=1), transport=httpx.MockTransport(flaky)),
    )
    shown = chat_with(["Who?", "Who?", "Who?"], monkeypatch)
    assert shown.count("gave no answer") == 2
    assert shown.count("─ answer ─") == 1


def test_markup_in_what_the_model_says_is_shown_as_it_is(opened, monkeypatch):  # noqa: F811
    async def stream(self, ids, most, stop, told):
        told("[red]not red[/red] [/]")
        return await CompletionsServer.generate(self, ids, most, stop)

    monkeypatch.setattr(CompletionsServer, "stream", stream)
    assert "[red]not red[/red] [/]" in chat_with(["Who?"], monkeypatch)


def test_what_the_model_says_cannot_write_to_the_terminal(opened, monkeypatch):  # noqa: F811
    async def stream(self, ids, most, stop, told):
        told("\x1b]52;c;ZXZpbA==\x1b\\\x1b[2J")
        return await CompletionsServer.generate(self, ids, most, stop)

    monkeypatch.setattr(CompletionsServer, "stream", stream)
    shown = chat_with(["Who?"], monkeypatch)
    assert "\x1b" not in shown
    assert "⟨U+001B⟩]52" in shown


WARNING = "is not a loopback address: whoever can reach it can use it\n"


@pytest.mark.parametrize(("host", "warned"), [("127.0.0.1", False), ("::1", False), ("0.0.0.0", True)])
def test_the_page_can_be_connected_to_when_its_address_is_told(host, warned, monkeypatch, capsys):
    told = []

    def connect(url):
        told.append(url)
        assert capsys.readouterr() == (f"{url}\n", f"{host} {WARNING}" if warned else "")
        socket.create_connection(("localhost" if warned else host, httpx.URL(url).port), timeout=5).close()

    monkeypatch.setattr("uvicorn.Server.run", lambda server, sockets: None)
    serve_page(lambda hosts: FastAPI(), host, 0, exposed="use it", extra="view", on_address=connect)
    (url,) = told
    assert url.startswith("http://[::1]:" if ":" in host else f"http://{host}:")


def test_a_page_without_uvicorn_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(MissingExtraError, match=r"'uvicorn' is not installed.*research-rl\[view\]"):
        serve_page(lambda hosts: FastAPI(), "127.0.0.1", 0, exposed="use it", extra="view")


def test_the_page_is_for_this_machine_and_for_no_other_site(opened):  # noqa: F811
    with TestClient(create_chat(agent(), own_hosts("127.0.0.1")), base_url="http://127.0.0.1:8100") as client:
        asked = {"params": {"question": "Who?"}}
        assert client.get("/ask", **asked, headers={"sec-fetch-site": "same-origin"}).status_code == 200
        assert client.get("/ask", **asked, headers={"sec-fetch-site": "cross-site"}).status_code == 403
        assert client.get("/ask", **asked, headers={"host": "evil.example:8100"}).status_code == 400  # a name that leads here
        assert client.get("/openapi.json").status_code == 404
    assert own_hosts("0.0.0.0") is None


@pytest.mark.parametrize("name", list(cli.COMMANDS))
def test_every_command_is_there(name, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main([name, "--help"])
    assert ended.value.code == 0
    assert "usage" in capsys.readouterr().out


def test_a_command_that_is_not_there_names_those_that_are(capsys):
    assert cli.main(["cht"]) == 2
    assert "no command is called 'cht'" in (err := capsys.readouterr().err)
    assert all(name in err for name in cli.COMMANDS)
    assert cli.main([]) == 2
    assert cli.main(["--help"]) == 0


def events(text: str) -> list[tuple[str, dict]]:
    blocks = [block.split("\n") for block in text.strip().split("\n\n")]
    return [(lines[0].removeprefix("event: "), json.loads(lines[1].removeprefix("data: "))) for lines in blocks]


def test_the_page_gets_every_event_and_the_answer(opened):  # noqa: F811
    with TestClient(create_chat(agent())) as client:
        page = client.get("/").text
        told = events(client.get("/ask", params={"question": "Who is it?"}).text)
    assert "EventSource" in page
    assert "innerHTML" not in page  # what a model or a passage says never becomes markup
    assert [kind for kind, _ in told if kind != "text"] == ["search", "found", "answer"]
    assert "".join(data["text"] for kind, data in told if kind == "text").startswith("<think>t</think>")
    assert dict(told)["found"] == {"passages": [{"id": "7", "title": "Orla", "text": "is her name"}]}
    assert dict(told)["answer"] == {"answer": "Orla", "searches": ["who"], "stop": "answered"}
    assert opened == {"opened": 1, "closed": 1}


def test_the_page_tells_an_outage_and_a_blank_question(opened, monkeypatch):  # noqa: F811
    monkeypatch.setattr(
        "research_rl.inference.agent.RetrievalClient",
        lambda settings: RetrievalClient(
            RetrievalSettings(settings.url, max_attempts=1), transport=httpx.MockTransport(lambda request: httpx.Response(500))
        ),
    )
    with TestClient(create_chat(agent())) as client:
        told = events(client.get("/ask", params={"question": "Who?"}).text)
        assert events(client.get("/ask", params={"question": " "}).text) == [("failed", {"message": "ask a question"})]
    assert told[-1][0] == "failed"
    assert "gave no answer" in told[-1][1]["message"]


async def test_who_leaves_ends_the_rollout(opened, monkeypatch):  # noqa: F811
    started, ended = asyncio.Event(), asyncio.Event()

    async def stream(self, ids, most, stop, told):
        started.set()
        told("thinking")
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            ended.set()
            raise

    monkeypatch.setattr(CompletionsServer, "stream", stream)
    answering = _events(agent(), "Who?")
    assert "thinking" in await anext(answering)
    await answering.aclose()
    await asyncio.wait_for(ended.wait(), 5)
