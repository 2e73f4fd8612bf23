"""`SearchAgentPipeline` inside plain FlashRAG: its Config, its Dataset, its evaluator."""

from __future__ import annotations

import json

import pytest

from tests import forked

CODE = """
import json, sys
import httpx
from flashrag.config import Config
from flashrag.utils import get_dataset
from evaluation.pipeline import SearchAgentPipeline
from research_rl import SearchAgent
from tests.unit import test_agent as play

class Server(play.CompletionsServer):
    def __init__(self, *arguments):
        super().__init__(*arguments, transport=httpx.MockTransport(play.model))

import research_rl.inference.agent
research_rl.inference.agent.CompletionsServer = Server
research_rl.inference.agent.RetrievalClient = lambda settings: play.RetrievalClient(settings, transport=httpx.MockTransport(play.service))
folder, metrics = sys.argv[1], json.loads(sys.argv[2])
config = Config(config_dict={
    "data_dir": folder, "dataset_name": "mine", "split": ["dev"], "save_dir": folder + "/out", "metrics": metrics, "gpu_id": "",
    "save_note": "x", "disable_save": False,
})
agent = SearchAgent("http://model/v1", "http://service", model="m", tokenizer=str(play.WEIGHTS), method="research")
done = SearchAgentPipeline(config, agent).run(get_dataset(config)["dev"])
print("RESULT", json.dumps([[item.pred, item.searches, item.output["metric_score"], item.retrieval_result[0]["id"]] for item in done]))
"""


def run(tmp_path, metrics):
    folder = tmp_path / "mine"
    folder.mkdir()
    rows = [
        {"id": "1", "question": "Who?", "golden_answers": ["orla."]},
        {"id": "2", "question": "What?", "golden_answers": ["x"]},
    ]
    (folder / "dev.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    # FlashRAG's Config sets environment variables and seeds of its whole process
    return forked.run("-c", CODE, str(tmp_path), json.dumps(metrics))


@pytest.mark.slow
def test_flashrags_evaluator_measures_the_agent(tmp_path):
    done = run(tmp_path, ["em", "f1", "acc", "retrieval_recall"])
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads(done.stdout.split("RESULT ")[1])
    right = {"em": 1.0, "f1": 1.0, "acc": 1.0, "retrieval_recall": 1.0}
    assert result == [["Orla", ["who"], right, "7"], ["Orla", ["who"], dict.fromkeys(right, 0), "7"]]


@pytest.mark.slow
def test_a_metric_that_flashrag_drops_is_an_error(tmp_path):
    done = run(tmp_path, ["em", "gaokao_acc"])  # needs a field that is not there: FlashRAG prints that and goes on
    assert done.returncode != 0
    assert "FlashRAG could not compute gaokao_acc" in done.stderr
