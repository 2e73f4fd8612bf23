"""Every file of examples/, run as its first lines say; the model of ask_agent.py is played by a server of the test."""

from __future__ import annotations

import contextlib
import json
import re
import runpy
import shlex
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient

from evaluation.summary import summarize
from research_rl.files import write_jsonl
from tests.servers import wait_ready
from tests.unit.test_agent import WEIGHTS, model, service

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
SCRIPTS = sorted(EXAMPLES.glob("*.py"))


def run(name: str, *arguments: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    return runpy.run_path(str(EXAMPLES / name), run_name="__main__")


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_a_script_is_short_says_how_it_is_run_and_stands_in_the_list(path):
    text = path.read_text(encoding="utf-8")
    assert 20 <= len(text.splitlines()) <= 50
    command = re.search(r"^    (python examples/.+)$", text, re.MULTILINE)
    assert command
    assert shlex.split(command[1])[1] == f"examples/{path.name}"
    assert f"]({path.name})" in (EXAMPLES / "README.md").read_text(encoding="utf-8")


@contextlib.contextmanager
def listening(answer) -> Iterator[str]:
    """Answer over TCP as a transport of the tests does; yield the URL."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            told = answer(httpx.Request(self.command, f"http://x{self.path}", content=body))
            self.send_response(told.status_code)
            self.send_header("content-length", str(len(told.content)))
            self.end_headers()
            self.wfile.write(told.content)

        do_POST = do_GET

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()


def named_model(request: httpx.Request) -> httpx.Response:
    """The model of the agent's tests, on a server that names it."""
    if request.url.path == "/v1/models":
        return httpx.Response(200, json={"data": [{"id": str(WEIGHTS), "max_model_len": 4096}]})
    return model(request)


def test_the_agent_searches_and_answers(monkeypatch, capsys):
    with listening(named_model) as served, listening(service) as retrieval:
        urls = ("--model-url", f"{served}/v1", "--retrieval-url", retrieval)
        run("ask_agent.py", "Who is it?", *urls, "--method", "research", monkeypatch=monkeypatch)
    out = capsys.readouterr().out
    assert "<search> who</search>\n    1. Orla\nis her name" in out
    assert "1 searches: who\nanswer: Orla\n" in out


def test_the_method_pays_half_for_an_answer_without_a_search(monkeypatch, capsys):
    run("own_method.py", monkeypatch=monkeypatch)
    assert capsys.readouterr().out == "['Silent Orchard'] 'Mira Tolen': 1.0\n[] 'Mira Tolen': 0.5\n"


def test_the_reward_takes_off_for_every_search_after_the_first(monkeypatch, capsys):
    names = run("own_reward.py", monkeypatch=monkeypatch)
    assert re.findall(r"^(\d) searches: ([\d.]+)", capsys.readouterr().out, re.MULTILINE) == [("1", "1.00"), ("3", "0.90")]
    thrifty = names["Thrifty"]()
    trajectory = thrifty.read(names["SEARCH"] * 3 + names["ANSWER"])
    assert thrifty.reward(trajectory, ["somebody else"], judged=1.0).score == pytest.approx(0.9)


def test_the_outputs_get_their_metrics_and_rewards(monkeypatch, capsys):
    run("score_outputs.py", monkeypatch=monkeypatch)
    out = capsys.readouterr().out
    assert re.search(r"^em +50\.0 %", out, re.MULTILINE)
    assert "'mean_score': 0.5" in out


def test_the_service_answers_inside_another_app():
    names = runpy.run_path(str(EXAMPLES / "service_in_app.py"))
    with TestClient(names["app"], base_url="http://testserver/retrieval") as client:
        wait_ready(client)
        assert client.get("http://testserver/ask", params={"question": "who founded Grom Company"}).json()[0] == "Grom Company"
        (found,) = client.post("/search", json={"query": "Novoslo town", "top_n": 1}).json()
        assert found["contents"] == "Novoslo\nA town by the sea."
        assert client.get("/").status_code == 200


class Shown(str):
    """What a notebook shows, in the place of IPython's classes."""


def a_run(directory: Path) -> Path:
    """Write what a quickstart leaves behind: two steps, measured before and after."""
    metrics = {"f1": 0.0, "searches": 1.0, "retrieval_rate": 1.0, "well_formed": 1.0, "score": 0.0}
    turn = {"text": "<search> <b>it</b> </search>", "observation": "<result>Oslo</result>", "action": {}, "passages": []}

    def record(step: int, split: str, em: float) -> dict[str, Any]:
        return {
            "step": step, "validate": split != "train", "split": split, "type": "t", "question": "Where?", "golden_answers": ["Oslo"],
            "answer": "Oslo", "stop_reason": "answered", "turns": [turn], "metrics": {**metrics, "em": em}, "attempt": 1.0,
        }  # fmt: skip

    records = [record(step, split, step / 2) for step in (0, 2) for split in ("test", "control")]
    records += [record(step, "train", 0.5) for step in (1, 2)]
    write_jsonl(directory / "trajectories" / "1-host-1.0.jsonl", records)
    (directory / "summary.json").write_text(json.dumps(summarize(records, 2)), encoding="utf-8")
    return directory


def test_the_notebook_shows_a_run_and_holds_no_outputs(tmp_path, monkeypatch):
    run_dir = a_run(tmp_path / "runs" / "quickstart")
    (tmp_path / "examples").mkdir()
    monkeypatch.chdir(tmp_path / "examples")
    display = ModuleType("IPython.display")
    display.HTML = display.Markdown = Shown  # type: ignore[attr-defined]
    notebook = json.loads((EXAMPLES / "quickstart_results.ipynb").read_text(encoding="utf-8"))
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert not any(cell["outputs"] or cell["execution_count"] for cell in cells)
    names: dict[str, Any] = {}
    with monkeypatch.context() as patched:  # not for longer: matplotlib asks an IPython that it sees more than a name
        patched.setitem(sys.modules, "IPython", ModuleType("IPython"))
        patched.setitem(sys.modules, "IPython.display", display)
        exec("".join(cells[0]["source"]), names)
    shown = []
    for cell in cells[1:]:
        *lines, last = "".join(cell["source"]).rsplit("\n", 1)
        exec("\n".join(lines), names)
        shown.append(eval(last, names))
    curves, table, trajectories = shown
    assert curves.startswith("<svg")
    assert "| Exact match | 0.000 | 1.000 | 1.000 |" in table
    assert trajectories.count("<iframe") == 2
    assert (
        "&lt;span class=&quot;model&quot;&gt;&lt;search&gt;" not in trajectories
    )  # escaped twice: in the page, and as its attribute
    assert "&amp;lt;b&amp;gt;it" in trajectories
    assert names["RUN"].resolve() == run_dir
