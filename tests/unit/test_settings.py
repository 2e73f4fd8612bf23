"""Settings: where values come from, and that what cannot be is told before anything is loaded."""

from __future__ import annotations

from threading import Event
from types import SimpleNamespace

import pytest

from rag_serving import ServingError
from rag_serving.cli import main
from rag_serving.server import _supervisor
from rag_serving.settings import Settings, load_settings


@pytest.fixture(autouse=True)
def clean(monkeypatch):
    import os

    for name in [name for name in os.environ if name.startswith("RAG_SERVING_")]:
        monkeypatch.delenv(name)


def test_flags_beat_the_environment_beats_the_file_beats_defaults(tmp_path, monkeypatch):
    file = tmp_path / "s.yaml"
    file.write_text("max_batch: 8\nmax_queue: 3000\nport: 1\n")
    monkeypatch.setenv("RAG_SERVING_MAX_BATCH", "16")
    monkeypatch.setenv("RAG_SERVING_PORT", "2")
    settings, origins = load_settings({"port": "3"}, file)
    assert (settings.max_batch, settings.max_queue, settings.port, settings.max_top_k) == (16, 3000, 3, 1000)
    assert origins["port"] == "flag"
    assert origins["max_batch"] == "environment RAG_SERVING_MAX_BATCH"
    assert origins["max_queue"] == str(file)
    assert origins["max_top_k"] == "default"


def test_lists_are_comma_separated_and_tokens_are_never_printed(monkeypatch, capsys):
    monkeypatch.setenv("RAG_SERVING_TOKENS", "alpha, beta")
    settings, _ = load_settings({})
    assert [token.get_secret_value() for token in settings.tokens] == ["alpha", "beta"]
    assert main(["config", "--cors-origins", "https://a.example,https://b.example", "--max-batch", "7"]) == 0
    printed = capsys.readouterr().out
    assert "alpha" not in printed
    lines = {line.split()[0]: line for line in printed.splitlines()}
    assert lines["max_batch"].split()[1:] == ["7", "flag"]
    assert "https://b.example" in lines["cors_origins"]
    assert "environment RAG_SERVING_TOKENS" in lines["tokens"]


def test_what_a_url_may_hold_is_not_printed(capsys):
    assert main(["config", "--web-url", "https://me:secret@search.example/v1?key=secret"]) == 0
    printed = capsys.readouterr().out
    assert "secret" not in printed
    assert "https://search.example" in printed


def test_tokens_come_from_a_file_too_one_per_line(tmp_path, capsys):
    file = tmp_path / "tokens"
    file.write_text("alpha\n\n  beta \n")
    settings, _ = load_settings({"tokens": "gamma", "tokens_file": str(file)})
    assert [token.get_secret_value() for token in settings.tokens] == ["gamma", "alpha", "beta"]
    assert main(["config", "--tokens-file", str(file)]) == 0
    assert "alpha" not in capsys.readouterr().out


def test_a_file_of_tokens_that_holds_none_is_no_permission_for_everybody(tmp_path):
    (tmp_path / "empty").write_text("\n")
    for name, says in (("empty", "holds no token"), ("missing", "cannot be read")):
        with pytest.raises(ServingError, match=says):
            load_settings({"tokens_file": str(tmp_path / name)})


def test_a_secret_given_as_a_flag_is_warned_of(tmp_path, capsys):
    assert main(["serve", "--index", str(tmp_path / "none"), "--tokens", "alpha"]) == 1
    told = capsys.readouterr().err
    assert "--tokens-file" in told
    assert "alpha" not in told


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ({"max_batch": "0"}, r"max_batch \(flag\)"),
        ({"port": "many"}, r"port \(flag\)"),
        ({"max_queries": "10", "max_queue": "5"}, "could never be served"),
        ({"max_top_k": "10", "max_passages": "9"}, "could never be served"),
        ({"retriever": "web"}, "web_key"),
        ({"retriever": "milvus"}, "needs milvus_uri"),
        ({"retriever": "bm52"}, "'bm25'"),
        ({"workers": "2", "device": "cuda"}, "several workers are for CPU indexes"),
    ],
)
def test_values_that_cannot_be_are_told_with_their_origin(flags, says):
    with pytest.raises(ServingError, match=says):
        load_settings(flags)


def test_unknown_names_are_told(tmp_path, monkeypatch, capsys):
    file = tmp_path / "s.yaml"
    file.write_text("max_bach: 8\n")
    with pytest.raises(ServingError, match=r"unknown setting 'max_bach' .*max_batch"):
        load_settings({}, file)
    file.write_text("- a list\n")
    with pytest.raises(ServingError, match="no YAML mapping"):
        load_settings({}, file)
    assert main(["config", "--config", str(tmp_path / "none.yaml")]) == 1
    monkeypatch.setenv("RAG_SERVING_MAX_BACH", "1")
    assert main(["config"]) == 1
    assert "RAG_SERVING_MAX_BACH" in capsys.readouterr().err


def test_what_a_dead_worker_last_said_leaves_the_metrics(tmp_path, monkeypatch):
    class Worker(SimpleNamespace):
        def __init__(self, pid, lives):
            super().__init__(pid=pid, is_alive=lambda timeout: lives, exitcode=-9, child_conn=SimpleNamespace(close=list))
            self.kill = self.join = self.start = list

    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    monkeypatch.setattr("uvicorn.supervisors.multiprocess.Process", lambda *_: Worker(3, True))
    for pid in (1, 2):
        (tmp_path / f"gauge_livesum_{pid}.db").touch()
        (tmp_path / f"counter_{pid}.db").touch()
    supervisor = object.__new__(_supervisor(Settings()))
    supervisor.processes, supervisor.should_exit, supervisor.sockets = [Worker(1, True), Worker(2, False)], Event(), []
    supervisor.config = SimpleNamespace(timeout_worker_healthcheck=1)
    supervisor.keep_subprocess_alive()
    assert [worker.pid for worker in supervisor.processes] == [1, 3]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["counter_1.db", "counter_2.db", "gauge_livesum_1.db"]


def test_serving_without_an_index_says_how_to_get_one(tmp_path, capsys):
    assert main(["serve", "--port", "0"]) == 1
    assert "rag-serving index" in capsys.readouterr().err
