"""FlashRAG's pipelines as baselines, over a model and a service that one real HTTP server plays."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from evaluation.baselines import ServedGenerator, ServedRetriever, cut
from tests.servers import json_server

ROOT = Path(__file__).parents[2]
WEIGHTS = ROOT / "quickstart" / "start_model" / "weights"
NAMES = ("direct", "naive_rag", "iter_retgen", "ircot", "flare")
CODE = """
import json, sys
from evaluation.__main__ import main
for name in {names!r}:
    code = main(["baseline", name, *sys.argv[1:], "--out", {out!r} + "/" + name + ".jsonl"])
    if code:
        sys.exit(code)
"""


@pytest.fixture(scope="module")
def world():
    """A server that is model and service in one; yields its URL and what both were asked."""
    asked: dict[str, list] = {"model": [], "service": []}

    def answer(path, body):
        if not path.endswith("/completions"):
            asked["service"] += body["query"]
            found = [{"id": "1", "contents": "It\nIt lies in Oslo."}, {"id": "2", "contents": "B\nOther."}]
            return 200, [[found] * len(body["query"]), [[2.0, 1.0]] * len(body["query"])]
        asked["model"].append(body)
        thought = body.get("stop") == ["\n", "."] and "lies in" in body["prompt"]
        text = " So the answer is: Oslo" if thought else " Oslo\nQuestion: more"
        text = "" if body["prompt"].endswith(" Oslo") else text  # it has said what it had to say
        count = 4
        choice = {"text": text, "logprobs": {"token_logprobs": [-5.0] * count} if body.get("logprobs") else None}
        return 200, {"choices": [choice], "usage": {"prompt_tokens": 7, "completion_tokens": count}}

    with json_server(answer) as url:
        yield url, asked


def run(tmp_path, url, names=NAMES):
    rows = [{"id": str(n), "question": f"Where is {n}?", "golden_answers": ["Oslo"] if n else ["Bergen"]} for n in range(3)]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = ["--questions", str(tmp_path / "q.jsonl"), "--model", "m", "--tokenizer", str(WEIGHTS), "--top-k", "2"]
    return subprocess.run(  # FlashRAG's Config sets environment variables and seeds of its whole process
        [sys.executable, "-c", CODE.format(names=names, out=str(tmp_path)), *arguments, "--model-url", f"{url}/v1", "--retrieval-url", url],
        cwd=ROOT, capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip


@pytest.mark.slow
def test_every_baseline_answers_under_the_same_service_and_is_resumable(world, tmp_path):
    url, asked = world
    done = run(tmp_path, url)
    assert done.returncode == 0, done.stderr[-2000:]
    summaries = {name: json.loads((tmp_path / f"{name}.summary.json").read_text()) for name in NAMES}
    assert {name: summary["em"] for name, summary in summaries.items()} == dict.fromkeys(NAMES, 0.6667)
    searches = {name: summary["searches"] for name, summary in summaries.items()}
    assert (searches["direct"], searches["naive_rag"], searches["iter_retgen"], searches["ircot"]) == (0, 1, 3, 1)
    assert searches["flare"] == 0  # every token is improbable, so nothing is left of the sentence to search with
    assert "Where is 1?" in asked["service"]
    assert all(body["temperature"] == 0.0 for body in asked["model"])
    assert any("It lies in Oslo." in body["prompt"] for body in asked["model"])
    before = len(asked["model"])
    assert run(tmp_path, url, ("naive_rag",)).returncode == 0
    assert len(asked["model"]) == before  # nothing is asked twice


def test_what_the_servers_cannot_take_is_done_here(world):
    url, asked = world
    retriever = ServedRetriever(url, 2)
    before = len(asked["service"])
    found, scores = retriever.batch_search([" ", "Where?"], return_score=True)
    assert ([len(row) for row in found], [len(row) for row in scores], retriever.searches) == ([0, 2], [0, 2], 1)
    assert asked["service"][before:] == ["Where?"]
    with httpx.Client() as http:
        generator = ServedGenerator(f"{url}/v1", "m", 8, None, http.post)
        assert generator.generate("Q", stop=list("!@#$%s")) == [" O"]  # more stop strings than a server takes
        assert "stop" not in asked["model"][-1]
    assert cut("a b c", ["c", "b"]) == "a "
    assert cut("a b c", []) == "a b c"


@pytest.mark.slow
def test_a_server_that_is_gone_is_told(tmp_path):
    done = run(tmp_path, "http://127.0.0.1:9", ("direct",))
    assert done.returncode == 1
    assert "no model server at http://127.0.0.1:9/v1" in done.stderr
    assert "Traceback" not in done.stderr
