"""Blocks of the documentation that are marked as runnable are run, page by page, in an empty directory.

A mark is an HTML comment above a block:

- ``<!-- run -->``: its commands are run; one that serves goes on while the later blocks run
- ``<!-- file: NAME -->``: the block is the content of a file; ``NAME x300``: its row 300 times, with a number behind id and question
- ``<!-- prints -->``: the last command must have printed the block (what `curl` printed does not count)
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from tests.servers import free_port, wait_ready

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(
    r"<!-- (?P<mark>run|prints|file: (?P<name>\S+)(?: x(?P<times>\d+))?) -->\n+```\w+\n(?P<body>.*?)```", re.DOTALL
)
MARK = re.compile(r"<!--\s*(?:run|prints|file)\b.*?-->", re.DOTALL)  # what looks like a mark
PAGES = [path for path in sorted((ROOT / "docs").rglob("*.md")) if MARK.search(path.read_text(encoding="utf-8"))]


def environment() -> dict[str, str]:
    """Return an environment in which `python`, and the commands, are those of this interpreter, as in the activated one of a reader."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}


def content(body: str, times: str | None) -> str:
    """Return the content of a file."""
    if not times:
        return body
    row = json.loads(body)
    copies = ({**row, "id": f"{row['id']}-{n}", "question": f"{row['question']} ({n})"} for n in range(int(times)))
    return "".join(json.dumps(copy) + "\n" for copy in copies)


def commands(body: str, port: str) -> list[str]:
    """Return the command lines of a block. Where the reader's commands use the default address, these name that of the test; and `curl`
    fails if it is refused."""
    lines = re.sub(r"\\\n\s*", "", body).splitlines()
    return [
        f"{line} --url http://127.0.0.1:{port}"
        if re.match("rag-serving (search|bench)(?!.*--url)", line)
        else re.sub("^curl ", "curl --fail ", line)
        for line in lines
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT / "docs").with_suffix("").as_posix())
def test_the_runnable_blocks_of_a_page_run(page, tmp_path):
    port, text = str(free_port()), page.read_text(encoding="utf-8")
    assert len(MARK.findall(text)) == len(BLOCK.findall(text)), "a mark is none of those that are known, or has no block"
    if "\ncurl " in text and not shutil.which("curl"):
        pytest.skip("curl is not installed")
    for folder in ("examples", "recipes"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    printed = ""
    with contextlib.ExitStack() as servers:
        for found in BLOCK.finditer(re.sub(r"\b8000\b", port, text)):
            if found["name"]:
                (tmp_path / found["name"]).parent.mkdir(parents=True, exist_ok=True)
                (tmp_path / found["name"]).write_text(content(found["body"], found["times"]), encoding="utf-8")
            elif found["mark"] == "prints":
                assert found["body"].strip() in printed
            else:
                for command in commands(found["body"], port):
                    if command.startswith("rag-serving serve"):
                        server = subprocess.Popen(command.split(), cwd=tmp_path, env=environment())
                        servers.callback(server.wait, 30)
                        servers.callback(server.terminate)
                        wait_ready(servers.enter_context(httpx.Client(base_url=f"http://127.0.0.1:{port}")))
                        continue
                    done = subprocess.run(
                        ["bash", "-c", command], cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=300
                    )
                    assert done.returncode == 0, (command, done.stdout[-2000:], done.stderr[-2000:])
                    printed = done.stdout if not command.startswith("curl") else printed


def test_pages_of_every_kind_have_some():
    assert {path.parent.name for path in PAGES} >= {"tutorials", "howto"}
