"""docker/haproxy.cfg, in front of two real services."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import time
from pathlib import Path

import httpx
import pytest

from rag_serving.indexing import build_index
from tests.servers import free_port, serving

CONFIGURATION = Path(__file__).parents[2] / "docker" / "haproxy.cfg"
pytestmark = [pytest.mark.slow, pytest.mark.skipif(shutil.which("haproxy") is None, reason="HAProxy is not installed")]


@pytest.mark.parametrize("characters", [10, 60_000])
async def test_a_service_that_is_killed_under_load_costs_no_request(tmp_path, characters):
    (tmp_path / "c.jsonl").write_text('{"id": "1", "contents": "one passage"}\n')
    build_index(tmp_path / "c.jsonl", tmp_path / "i")
    flags = ("--index", str(tmp_path / "i"), "--log-level", "WARNING", "--max-query-characters", "100000")
    with serving(*flags) as (first, server), serving(*flags) as (second, _):
        port = free_port()
        places = {
            "LISTEN": f"127.0.0.1:{port}",
            **{f"SERVICE_{n}": url.rpartition("/")[2] for n, url in ((1, first), (2, second))},
        }
        balancer = subprocess.Popen(["haproxy", "-f", str(CONFIGURATION)], env={**os.environ, **places})
        try:
            statuses: list[int] = []
            begun: list[httpx.RemoteProtocolError] = []

            async def ask(client: httpx.AsyncClient) -> None:
                while time.monotonic() < end:
                    try:  # head and body leave httpx one after the other
                        answer = await client.post("/v1/search", json={"queries": ["passage".ljust(characters)], "top_k": 1})
                        statuses.append(answer.status_code)
                    except httpx.RemoteProtocolError as failure:  # killed between head and body of an answer, once in a while
                        begun.append(failure)

            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=20) as client:
                for _ in range(50):
                    try:
                        assert (await client.get("/readyz")).status_code == 200
                        break
                    except httpx.ConnectError:
                        await asyncio.sleep(0.1)
                end = time.monotonic() + 4
                asyncio.get_running_loop().call_later(1.5, server.kill)
                await asyncio.gather(*(ask(client) for _ in range(8)))
            assert server.poll() is not None
            assert len(statuses) > 100
            assert set(statuses) == {200}
            assert len(begun) <= 1, begun
            assert all("complete message body" in str(failure) for failure in begun)
        finally:
            balancer.terminate()
            balancer.wait(10)
