"""FlashRAG's pipelines as baselines, over a model and a service that one real HTTP server plays."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import httpx
import pytest
from transformers import AutoTokenizer

from evaluation.flashrag_parts import ServedGenerator, ServedRetriever, cut
from tests import forked
from tests.servers import json_server

ROOT = Path(__file__).parents[2]
WEIGHTS = ROOT / "quickstart" / "start_model" / "weights"
TOKENIZER = AutoTokenizer.from_pretrained(WEIGHTS)
TOKENIZER.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + CHATML
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
        prompt = TOKENIZER.decode(body["prompt"])
        asked["model"].append({**body, "prompt": prompt, "tokens": len(body["prompt"])})
        thought = body.get("stop") == ["\n", "."] and "lies in" in prompt
        text = " So the answer is: Oslo" if thought else " Oslo\nQuestion: more"
        text = "" if prompt.endswith(" Oslo") else text  # it has said what it had to say
        count = 4
        choice = {"text": text, "logprobs": {"token_logprobs": [-5.0] * count} if body.get("logprobs") else None}
        return 200, {"choices": [choice], "usage": {"prompt_tokens": 7, "completion_tokens": count}}

    with json_server(answer) as url:
        yield url, asked


def run(tmp_path, url, names=NAMES):
    rows = [{"id": str(n), "question": f"Where is {n}?", "golden_answers": ["Oslo"] if n else ["Bergen"]} for n in range(3)]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = ["--questions", str(tmp_path / "q.jsonl"), "--model", "m", "--tokenizer", str(WEIGHTS), "--top-k", "2"]
    code = CODE.format(
        names=names, out=str(tmp_path)
    )  # FlashRAG's Config sets environment variables and seeds of its whole process
    return forked.run("-c", code, *arguments, "--model-url", f"{url}/v1", "--retrieval-url", url)


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
        generator = ServedGenerator(f"{url}/v1", "m", 8, TOKENIZER, http.post, max_input_tokens=5)
        assert generator.generate("Q", stop=list("!@#$%s")) == [" O"]  # more stop strings than a server takes
        assert "stop" not in asked["model"][-1]
        assert generator.cut_prompts == 0
        generator.generate("first " * 10 + "last " * 10)
        ids = TOKENIZER.encode("first " * 10 + "last " * 10)
        assert asked["model"][-1]["prompt"] == TOKENIZER.decode(ids[:3] + ids[-2:])  # longer than allowed: it loses its middle
        assert generator.cut_prompts == 1
    assert cut("a b c", ["c", "b"]) == "a "
    assert cut("a b c", []) == "a b c"


def model_folder(folder, chat_template):
    """Write the starting model's configuration and tokenizer, with ChatML's special tokens and a chat template or none, into a folder."""
    folder.mkdir()
    (folder / "config.json").write_text((WEIGHTS / "config.json").read_text())
    tokenizer = copy.deepcopy(TOKENIZER)
    tokenizer.chat_template = chat_template
    tokenizer.save_pretrained(folder)
    return folder


def baseline(name, tmp_path, url, tokenizer, *more):
    """Run the command by itself; returns its process."""
    (tmp_path / "q.jsonl").write_text(json.dumps({"id": "1", "question": "Where is it?", "golden_answers": ["Oslo"]}) + "\n")
    return forked.run(
        "-m", "evaluation", "baseline", name, "--questions", str(tmp_path / "q.jsonl"), "--model", "m",
        "--tokenizer", str(tokenizer), "--out", str(tmp_path / f"{name}.jsonl"), "--model-url", f"{url}/v1", "--retrieval-url", url, *more,
    )  # fmt: skip


@pytest.mark.slow
def test_nothing_but_the_result_is_on_standard_output(world, tmp_path):
    done = baseline("naive_rag", tmp_path, world[0], WEIGHTS)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout)["em"] == 1.0
    assert "Load data from provided data" in done.stderr  # what FlashRAG has to say


@pytest.mark.slow
@pytest.mark.parametrize(
    ("folder", "template", "name", "option", "chat"),
    [
        ("mine", CHATML, "direct", "auto", True),
        ("mine-instruct", None, "direct", "auto", False),
        ("mine", CHATML, "ircot", "auto", False),  # FlashRAG's prompt for it is plain text
        ("mine", CHATML, "ircot", "on", True),
        ("mine-chat", CHATML, "naive_rag", "off", False),
    ],
)
def test_the_tokenizer_or_the_user_decides_about_the_chat_template_and_no_name_does(
    world, tmp_path, folder, template, name, option, chat
):
    url, asked = world
    done = baseline(name, tmp_path, url, model_folder(tmp_path / folder, template), "--chat-template", option)
    assert done.returncode == 0, done.stderr[-2000:]
    prompt = asked["model"][-1]["prompt"]
    assert prompt.endswith("<|im_end|>\n<|im_start|>assistant\n") is chat
    assert ("<|im_start|>" in prompt) is chat
    record = json.loads((tmp_path / f"{name}.jsonl").read_text())
    assert (record["chat_template"], json.loads(done.stdout)["chat_template"]) == (chat, chat)


@pytest.mark.slow
def test_a_chat_template_without_a_system_role_gets_its_text_before_the_question(world, tmp_path):
    url, asked = world
    done = baseline("naive_rag", tmp_path, url, model_folder(tmp_path / "m", NO_SYSTEM))
    assert done.returncode == 0, done.stderr[-2000:]
    prompt = asked["model"][-1]["prompt"]
    assert prompt.startswith("<|im_start|>user\nAnswer the question based on the given document.")
    assert "It lies in Oslo." in prompt
    assert prompt.count("<|im_start|>") == 2


@pytest.mark.slow
def test_a_prompt_that_is_too_long_keeps_the_form_of_the_chat_and_is_counted(world, tmp_path):
    url, asked = world
    more = ("--max-input-tokens", "80")
    done = baseline("naive_rag", tmp_path, url, model_folder(tmp_path / "m", CHATML), *more)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (json.loads(done.stdout)["cut_prompts"], asked["model"][-1]["tokens"]) == (1, 80)
    prompt = asked["model"][-1]["prompt"]
    assert prompt.startswith("<|im_start|>system\n")
    assert prompt.endswith("<|im_end|>\n<|im_start|>assistant\n")


@pytest.mark.slow
def test_a_chat_template_that_is_not_there_cannot_be_used(world, tmp_path):
    done = baseline("direct", tmp_path, world[0], WEIGHTS, "--chat-template", "on")
    assert done.returncode == 1
    assert "has no chat template" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_server_that_is_gone_is_told(tmp_path):
    done = run(tmp_path, "http://127.0.0.1:9", ("direct",))
    assert done.returncode == 1
    assert "no model server at http://127.0.0.1:9/v1" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("name", ["direct", "naive_rag"])
def test_rows_of_a_baseline_are_the_prompts_that_it_is_measured_with_and_the_golden_answers(world, tmp_path, name):
    import pyarrow as pa
    import pyarrow.parquet as pq

    from research_rl.codec import encode_row, load_codec

    url, asked = world
    rows = [{"id": str(n), "question": f"Which town {n}?", "golden_answers": [f"Oslo {n}", "x"]} for n in range(4)]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pq.write_table(pa.table({"id": ["1", "2", "3"]}), tmp_path / "demonstrations.parquet")
    options = ["--questions", str(tmp_path / "q.jsonl"), "--tokenizer", str(WEIGHTS), "--top-k", "2", "--retrieval-url", url]
    out = tmp_path / "rows.parquet"
    ids_path = str(tmp_path / "demonstrations.parquet")
    done = forked.run("-m", "evaluation", "baseline-rows", name, *options, "--out", str(out), "--rows", "2", "--ids", ids_path)
    assert done.returncode == 0, done.stderr[-2000:]
    made = pq.read_table(out).to_pylist()
    assert len(made) == 2
    assert {row["id"] for row in made} < {"1", "2", "3"}
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows if row["id"] == made[0]["id"]))
    before = len(asked["model"])
    code = CODE.format(names=(name,), out=str(tmp_path))
    measured = forked.run("-c", code, *options, "--model", "m", "--model-url", f"{url}/v1")
    assert measured.returncode == 0, measured.stderr[-2000:]
    (body,) = asked["model"][before:]
    codec = load_codec(str(WEIGHTS), bos=None)
    ids, mask = encode_row(codec, made[0])
    assert codec.decode([one for one, learnt in zip(ids, mask, strict=True) if not learnt]) == body["prompt"]
    assert f"Oslo {made[0]['id']}" in codec.decode([one for one, learnt in zip(ids, mask, strict=True) if learnt])
