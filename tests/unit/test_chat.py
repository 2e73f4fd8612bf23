"""The chat in the terminal, and `research-rl`, which names every command."""

from __future__ import annotations

import asyncio
import io

import httpx
import pytest
from rich.console import Console

from evaluation.chat import Chat
from research_rl import cli
from research_rl.openai_server import CompletionsServer
from research_rl.retrieval import RetrievalClient, RetrievalSettings
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
        "research_rl.agent.RetrievalClient",
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
