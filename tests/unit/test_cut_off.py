"""Files that are cut off while they are served: the process lives on where it can, and tells why it ended where it cannot."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from rag_serving.app import create_app
from rag_serving.cut_off import Files
from rag_serving.indexing import add_passages, build_index, read_manifest, replace
from rag_serving.settings import Settings
from tests.servers import wait_ready

READ_BEYOND = """
import mmap, sys
from pathlib import Path
from rag_serving.cut_off import tell_bus_errors
tell_bus_errors([Path("/indexes/wiki"), Path("/indexes/private")])
tell_bus_errors([Path("/indexes/wiki")])
with open(sys.argv[1], "w+b") as file:
    file.write(bytes(20_000))
    file.flush()
    mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    file.truncate(1)
print(mapped[15_000])
"""


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cut_off")
    write(folder / "c.jsonl", "old", 300)
    build_index(folder / "c.jsonl", folder / "i", processes=1)
    return folder / "i"


@pytest.fixture
def copy(index, tmp_path):
    return shutil.copytree(index, tmp_path / "i")


def write(path, name, passages):
    rows = ({"id": f"{name}-{n}", "contents": f"{name} passage {n} of italy"} for n in range(passages))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_a_process_that_reads_beyond_a_mapped_files_end_tells_it_in_a_line_and_ends_as_before(tmp_path):
    ended = subprocess.run([sys.executable, "-c", READ_BEYOND, tmp_path / "file"], capture_output=True, text=True, check=False)
    assert ended.returncode == -signal.SIGBUS
    (line,) = ended.stderr.splitlines()
    assert line.startswith("rag-serving: SIGBUS: a mapped file cannot be read any more")
    assert "Indexes: /indexes/wiki, /indexes/private;" in line


def test_a_file_of_another_size_is_told_and_one_that_takes_its_place_is_not(copy):
    files = Files(copy, read_manifest(copy))
    assert files.changed() is None
    copy.rename(copy.with_name("old"))
    shutil.copytree(copy.with_name("old"), copy)
    os.truncate(copy / "corpus.jsonl", 10)
    assert files.changed() is None
    os.truncate(copy.with_name("old") / "corpus.jsonl", 10)
    assert "corpus.jsonl has 10 bytes instead of" in str(files.changed())


def test_an_index_that_another_machine_replaced_on_a_network_file_system_is_refused_in_a_line(copy, monkeypatch):
    def stale(descriptor):
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    with TestClient(create_app(Settings(index=copy))) as client:
        wait_ready(client)
        monkeypatch.setattr("rag_serving.cut_off.os.fstat", stale)
        refused = client.post("/search", json={"query": "italy"})
        ready = client.get("/readyz")
        monkeypatch.undo()
    assert (refused.status_code, refused.json()["reason"]) == (503, "damaged")
    assert f"cannot be read any more ({os.strerror(errno.ESTALE)})" in refused.json()["detail"]
    assert ready.status_code == 503
    assert "send SIGHUP" in ready.json()["stage"]


def test_an_index_whose_file_was_cut_off_is_read_no_further_until_a_whole_one_is_loaded(copy, caplog):
    # no array of BM25 is mapped by this retriever: what is cut off here can end no process
    with TestClient(create_app(Settings(index=copy, retriever="random"))) as client:
        wait_ready(client)
        assert client.post("/search", json={"query": "italy"}).status_code == 200
        os.truncate(copy / "bm25" / "data.csc.index.npy", 100)
        assert client.get("/readyz").status_code == 503
        stage = client.get("/readyz").json()["stage"]
        assert "bm25/data.csc.index.npy has 100 bytes instead of" in stage
        assert str(copy) not in stage  # anybody may ask
        for path, body in [("/search", {"query": "italy"}), ("/v1/open", {"id": "old-1"})]:
            refused = client.post(path, json=body)
            assert (refused.status_code, refused.json()["reason"]) == (503, "damaged")
        assert 'rag_index_damaged{index="default"} 1.0' in client.get("/metrics").text
        assert caplog.text.count("the index that is served is damaged") == 1
        write(copy.with_name("d.jsonl"), "new", 20)
        build_index(copy.with_name("d.jsonl"), copy, force=True, processes=1)
        client.app.state.reload().result(120)
        assert client.get("/readyz").status_code == 200
        assert client.post("/v1/open", json={"id": "new-1"}).status_code == 200
        assert 'rag_index_damaged{index="default"} 0.0' in client.get("/metrics").text


def test_a_mount_that_is_dead_holds_up_none_but_those_who_ask_its_index(copy, monkeypatch):
    lives, alone, others_asked = threading.Event(), os.fstat, []

    def dead(descriptor):
        if threading.current_thread().name.startswith(("looking", "retriever")):
            lives.wait(30)
        else:
            others_asked.append(threading.current_thread().name)
        return alone(descriptor)

    with TestClient(create_app(Settings(index=copy))) as client, ThreadPoolExecutor() as others:
        wait_ready(client)
        monkeypatch.setattr("rag_serving.cut_off.os.fstat", dead)
        search = others.submit(client.post, "/search", json={"query": "italy"})
        passage = others.submit(client.get, "/v1/passages/old-1")
        ready = others.submit(client.get, "/readyz")
        for _ in range(20):
            started = time.monotonic()
            assert client.get("/livez").status_code == 200
            assert time.monotonic() - started < 1
        assert ready.result(5).status_code == 200  # nothing is known to be wrong yet
        assert "do not answer" in passage.result(5).json()["detail"]
        assert not search.done()
        assert others_asked == []  # the event loop waits for no file system
        lives.set()
        assert search.result(30).status_code == client.get("/v1/passages/old-1").status_code == 200


def test_passages_that_were_looked_up_keep_no_file_of_an_index_that_was_replaced(copy):
    with TestClient(create_app(Settings(index=copy))) as client:
        wait_ready(client)
        assert client.get("/v1/passages/old-1").status_code == 200
        write(copy.with_name("d.jsonl"), "new", 20)
        build_index(copy.with_name("d.jsonl"), copy, force=True, processes=1)
        client.app.state.reload().result(120)
        until = time.monotonic() + 20  # the old index is closed after its last query
        while any(
            "(deleted)" in line and str(copy.parent) in line for line in Path("/proc/self/maps").read_text().splitlines()
        ):
            assert time.monotonic() < until
            time.sleep(0.1)


@pytest.mark.parametrize("exchange", [True, False])
def test_building_and_adding_leave_the_files_that_are_served_as_they_are(copy, monkeypatch, exchange):
    if not exchange:
        monkeypatch.setattr(replace, "_exchanged", lambda *_: False)
    served = {path: path.open("rb") for path in copy.rglob("*") if path.is_file()}
    files, before = Files(copy, read_manifest(copy)), {path: file.read() for path, file in served.items()}
    more = copy.with_name("d.jsonl")
    write(more, "new", 5)
    add_passages(more, copy, processes=1)
    build_index(more, copy, force=True, processes=1)
    assert read_manifest(copy)["passages"] == 5
    assert files.changed() is None
    for path, file in served.items():
        file.seek(0)
        assert file.read() == before[path], path
        file.close()


def test_an_index_that_is_replaced_is_never_taken_up_as_an_interrupted_build(copy, monkeypatch):
    """Its builder may have been killed before it removed its notes, and the next one before it removed the index."""
    for name in ("request.json", "bm25.done.json"):
        (copy / name).write_text("{}")
    exchange = replace._exchanged

    def killed(building, out):
        if not exchange(building, out):
            pytest.skip("this file system cannot exchange directories")
        raise KeyboardInterrupt

    monkeypatch.setattr(replace, "_exchanged", killed)
    write(copy.with_name("d.jsonl"), "new", 5)
    with pytest.raises(KeyboardInterrupt):
        build_index(copy.with_name("d.jsonl"), copy, force=True, processes=1)
    replaced = copy.with_name(".i.building")
    assert read_manifest(replaced)["passages"] == 300
    assert not [*replaced.glob("*.done.json"), *replaced.glob("request.json")]
