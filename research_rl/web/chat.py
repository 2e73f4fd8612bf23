"""``research-rl chat``: ask a served model in the terminal or on a page (`--web`), and watch it think and search."""

from __future__ import annotations

import asyncio
import sys

from research_rl.command_line import Parser, json_object
from research_rl.errors import ConfigError, GenerationError, RetrievalError, missing_extra
from research_rl.inference.agent import Answered, Event, SearchAgent
from research_rl.inference.served import add_limits, add_prompting, limits
from research_rl.types import Passage
from research_rl.web.page import visible
from research_rl.web.serving import serve_page

try:
    from rich.console import Console
    from rich.markup import escape
    from rich.panel import Panel
except ModuleNotFoundError as error:
    raise missing_extra("rich", "eval") from error

HELP = "Ask a question. /1, /2 … opens a passage of the last answer, /searches lists its queries, /quit ends."


def _shown(text: str) -> str:
    """Return a text that cannot speak to the terminal, by markup or by escape sequences."""
    return escape(visible(text))


class Chat:
    """One person at a terminal."""

    def __init__(self, agent: SearchAgent, console: Console) -> None:
        self._agent, self._console = agent, console
        self._passages: list[Passage] = []
        self._last: Answered | None = None

    def told(self, event: Event) -> None:
        """Show an event: the model's text in blue, queries, and the titles of the passages found."""
        if event.kind == "text":
            self._console.print(visible(event.text), style="blue", end="", markup=False, highlight=False)
        elif event.kind == "search":
            self._console.print(f"\n[bold]search[/bold] {_shown(event.text)}")
        else:
            for passage in event.passages:
                self._passages.append(passage)
                title, _, text = passage.contents.partition("\n")
                line = f"[yellow]/{len(self._passages)}[/yellow] {_shown(title)}  [dim]{_shown(text[:80])}[/dim]"
                self._console.print(line, no_wrap=True, overflow="ellipsis", highlight=False)

    async def ask(self, question: str) -> None:
        """Answer one question. After an outage, show the error and go on."""
        self._passages, self._last = [], None
        try:
            self._last = await self._agent.aanswer(question, self.told)
        except (RetrievalError, GenerationError) as error:
            self._console.print(f"\n[red]{_shown(str(error))}[/red]")
            return
        answer = self._last.answer
        style = "green" if answer else "red"
        self._console.print()
        self._console.print(
            Panel(_shown(answer or f"no answer ({self._last.trajectory.stop_reason})"), style=style, title="answer")
        )

    def command(self, line: str) -> bool:
        """Carry out a line that begins with a slash; return whether the chat goes on."""
        name = line[1:].strip()
        if name in ("quit", "exit", "q"):
            return False
        if name == "searches" and self._last:
            for query in self._last.searches:
                self._console.print(f"  {_shown(query)}", highlight=False)
        elif name.isdigit() and 0 < int(name) <= len(self._passages):
            passage = self._passages[int(name) - 1]
            self._console.print(Panel(_shown(passage.contents), title=_shown(passage.id)))
        else:
            self._console.print(HELP)
        return True

    async def run(self) -> None:
        """Read lines until the end of input."""
        self._console.print(HELP, style="dim")
        async with self._agent:
            while True:
                try:
                    line = (await asyncio.to_thread(self._console.input, "[bold]> [/bold]")).strip()
                except (EOFError, KeyboardInterrupt):
                    return
                if line.startswith("/"):
                    if not self.command(line):
                        return
                elif line:
                    await self.ask(line)


def serve(agent: SearchAgent, host: str, port: int) -> None:
    """Serve the page until it is interrupted."""
    from research_rl.web.chat_page import create_chat  # needs its extra

    serve_page(lambda hosts: create_chat(agent, hosts), host, port, exposed="use your model and your corpus", extra="chat")


def main(arguments: list[str] | None = None) -> int:
    """Open the chat; return the exit code."""
    options = make_parser().parse_args(arguments)
    try:
        agent = SearchAgent(
            options.model_url, options.retrieval_url, model=options.model, tokenizer=options.tokenizer, method=options.method,
            method_options=options.method_options, temperature=options.temperature, bos=options.bos,
            chat_template_kwargs=options.chat_template_kwargs, **limits(options),
        )  # fmt: skip  # many arguments
        if options.web:
            serve(agent, options.host, options.port)
        else:
            asyncio.run(Chat(agent, Console()).run())
    except (ConfigError, GenerationError, ImportError, OSError) as error:
        print(f"research-rl chat: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def make_parser() -> Parser:
    """Return the parser."""
    parser = Parser(
        prog="research-rl chat", description=__doc__, example="research-rl chat --tokenizer runs/quickstart/model --top-k 3"
    )
    parser.add_argument("--model", default=None, help="the model's name on its server (default: the first it offers)")
    parser.add_argument("--model-url", default="http://127.0.0.1:9000/v1", help="base URL of the server, ending in /v1")
    parser.add_argument(
        "--retrieval-url", default="http://127.0.0.1:8000", help="the retrieval service: your corpus, or the web"
    )
    parser.add_argument("--tokenizer", default=None, help="directory or hub id of its tokenizer (default: the model)")
    parser.add_argument("--method", default=None, help="name or dotted path; default: what the manifest beside the model says")
    parser.add_argument("--method-options", type=json_object, default={}, help='JSON, for example {"prompt_file": "p.txt"}')
    add_prompting(parser)
    parser.add_argument("--temperature", type=float, default=0.0, help="sampling temperature; 0: always the most likely token")
    add_limits(parser)
    parser.add_argument("--web", action="store_true", help="serve a page for the browser instead of a chat in the terminal")
    parser.add_argument(
        "--host", default="127.0.0.1", help="address of the page; whoever can reach it can use your model and your corpus"
    )
    parser.add_argument("--port", type=int, default=8100, help="port of the page; 0: any free one")
    return parser


if __name__ == "__main__":
    sys.exit(main())
