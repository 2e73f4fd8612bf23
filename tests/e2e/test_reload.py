"""A new index under the same port: nobody is refused, every answer is of the index that it names, and two are never served for long."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from pathlib import Path

import httpx
import pytest

from rag_serving.indexing import build_index, read_manifest
from tests.servers import serving

pytestmark = pytest.mark.slow

WORDS = ["river", "tower", "bread", "whale", "stone", "glass", "cloud", "wheel"]


def write_index(folder: Path, name: str) -> str:
    """Replace `folder/i` by an index whose passages all carry a name; return the index's name."""
    corpus = folder / f"{name}.jsonl"
    rows = [{"id": f"{name}-{n}", "contents": f"{WORDS[n % 8]} {WORDS[n // 8 % 8]} {name} {n}"} for n in range(400)]
    corpus.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return build_index(corpus, folder / "i", force=True)["index_id"]


def children(pid: int) -> list[int]:
    """Return the workers among a supervisor's children (the other is the tracker of multiprocessing's resources)."""
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in found if b"resource_tracker" not in Path(f"/proc/{child}/cmdline").read_bytes()]


@pytest.mark.parametrize("workers", [1, 2])
async def test_a_new_index_is_loaded_under_load_and_every_answer_is_of_the_index_it_names(tmp_path, workers):
    ids = {write_index(tmp_path, "old"): "old"}
    log, seen, stop = tmp_path / "log", [], asyncio.Event()
    with serving("--index", str(tmp_path / "i"), "--workers", str(workers), "--threads", "1", log_file=log) as (url, server):

        async def client(number: int) -> None:
            async with httpx.AsyncClient(base_url=url, timeout=30) as http:
                while not stop.is_set():
                    queries = [f"{WORDS[(number + len(seen)) % 8]} old new", WORDS[len(seen) % 8]]
                    answer = (await http.post("/v1/search", json={"queries": queries, "top_k": 3})).raise_for_status().json()
                    seen.append((answer["index_id"], {hit["id"].split("-")[0] for hits in answer["results"] for hit in hits}))

        async with asyncio.TaskGroup() as tasks:
            for number in range(8):
                tasks.create_task(client(number))
            await asyncio.sleep(1)
            new = await asyncio.to_thread(write_index, tmp_path, "new")
            ids[new] = "new"
            before = len(seen)
            server.send_signal(signal.SIGHUP)
            for _ in range(300):
                await asyncio.sleep(0.1)
                if len(seen) > 50 and {name for name, _ in seen[-50:]} == {new}:
                    break
            stop.set()
        metrics = httpx.get(f"{url}/metrics").text
        assert f'rag_index{{index="default",index_id="{new}"}} {workers}.0' in metrics
        assert f'rag_reloads_total{{index="default",outcome="done"}} {workers}.0' in metrics
    assert {name for name, _ in seen[:before]} == set(ids) - {new}
    assert {name for name, _ in seen[-50:]} == {new}
    assert all(found == {ids[name]} for name, found in seen)
    assert "Traceback" not in log.read_text()


@pytest.mark.parametrize("workers", [1, 2])
def test_the_lines_of_the_last_requests_are_written_before_the_service_ends(tmp_path, workers):
    write_index(tmp_path, "old")
    for number in range(3):
        log = tmp_path / f"log{number}"
        with serving("--index", str(tmp_path / "i"), "--workers", str(workers), "--threads", "1", log_file=log) as (url, _):
            for _ in range(9):
                httpx.post(f"{url}/v1/search", json={"queries": ["river"], "top_k": 1}, timeout=30).raise_for_status()
        assert log.read_text().count("POST /v1/search 200") == 9


def test_a_worker_that_finds_another_index_does_not_start_until_all_load_it(tmp_path):
    old, log = write_index(tmp_path, "old"), tmp_path / "log"
    with serving("--index", str(tmp_path / "i"), "--workers", "2", "--threads", "1", log_file=log) as (url, server):

        def served() -> set[str]:
            body = {"queries": ["river"], "top_k": 1}
            return {httpx.post(f"{url}/v1/search", json=body, timeout=30).json()["index_id"] for _ in range(30)}

        new = write_index(tmp_path, "new")
        os.kill(children(server.pid)[0], signal.SIGKILL)
        for _ in range(600):
            time.sleep(0.1)
            if "until SIGHUP" in log.read_text():
                break
        told = log.read_text()
        assert f"holds index {new} now, and the other workers serve {old}" in told
        assert "1 go on without it, until SIGHUP" in told
        assert served() == {old}
        server.send_signal(signal.SIGHUP)
        for _ in range(600):
            time.sleep(0.1)
            if f'rag_index{{index="default",index_id="{new}"}} 2.0' in httpx.get(f"{url}/metrics", timeout=30).text:
                break
        assert served() == {new}
        assert len(children(server.pid)) == 2


@pytest.mark.parametrize("workers", [1, 2])
def test_an_index_that_cannot_be_loaded_leaves_the_old_one_served(tmp_path, workers):
    old, log = write_index(tmp_path, "old"), tmp_path / "log"
    with serving("--index", str(tmp_path / "i"), "--workers", str(workers), "--threads", "1", log_file=log) as (url, server):
        write_index(tmp_path, "new")
        (tmp_path / "i" / "corpus.offsets.npy").unlink()
        server.send_signal(signal.SIGHUP)
        for _ in range(100):
            time.sleep(0.1)
            if "corpus.offsets.npy is missing" in log.read_text():
                break
        assert "corpus.offsets.npy is missing" in log.read_text()
        assert httpx.post(f"{url}/v1/search", json={"queries": ["river"], "top_k": 1}).json()["index_id"] == old
        assert server.poll() is None
    assert read_manifest(tmp_path / "i")["index_id"] != old


def test_an_index_that_is_cut_off_under_the_service_is_refused_until_a_whole_one_is_loaded(tmp_path):
    log = tmp_path / "log"
    write_index(tmp_path, "old")
    with serving("--index", str(tmp_path / "i"), "--threads", "1", log_file=log) as (url, server):
        os.truncate(tmp_path / "i" / "corpus.jsonl", 100)
        refused = httpx.post(f"{url}/v1/search", json={"queries": ["river"], "top_k": 1}, timeout=30)
        assert (refused.status_code, refused.json()["reason"]) == (503, "damaged")
        assert server.poll() is None
        new = write_index(tmp_path, "new")
        server.send_signal(signal.SIGHUP)
        for _ in range(600):
            time.sleep(0.1)
            if httpx.get(f"{url}/readyz", timeout=30).status_code == 200:
                break
        assert httpx.post(f"{url}/v1/search", json={"queries": ["river"], "top_k": 1}, timeout=30).json()["index_id"] == new


def test_a_process_that_reads_what_was_cut_off_first_names_the_index_as_it_ends(tmp_path):
    """The signal is sent: the moment between the comparison of sizes and the reading is too short to be hit by a test."""
    log = tmp_path / "log"
    write_index(tmp_path, "old")
    with serving("--index", str(tmp_path / "i"), "--threads", "1", log_file=log) as (url, server):
        httpx.post(f"{url}/v1/search", json={"queries": ["river"], "top_k": 1}, timeout=30).raise_for_status()
        os.kill(server.pid, signal.SIGBUS)
        assert server.wait(30) == -signal.SIGBUS
    assert "SIGBUS: a mapped file cannot be read any more, so this process ends." in log.read_text()
    assert f"Indexes: {tmp_path / 'i'};" in log.read_text()
