"""The commands that ask a service: their flags, and what they print."""

from __future__ import annotations

import argparse
import json
import os
import re
from pathlib import Path
from typing import Any

from rag_serving import ServingError
from rag_serving.help import example
from rag_serving.mcp_command import add_mcp
from rag_serving.naming import NAME, address_of

URL = "http://127.0.0.1:8000"


def add_clients(commands: Any) -> None:
    """Add the commands that ask a service: search, bench, mcp."""
    search = commands.add_parser(
        "search",
        help="search once, in an index or by a service, and print what is found",
        **example('rag-serving search "who founded Grom Company" --index index/ -k 2'),
    )
    search.add_argument("query", help="what to search for")
    search.add_argument(
        "--index",
        metavar="DIR|NAME",
        help="directory made by `rag-serving index`, searched without a service; with --url: name of one of the service's indexes",
    )
    search.add_argument("--url", "--retrieval-url", help=f"a running service (default {URL}, unless --index is a directory)")
    search.add_argument("-k", "--top-k", dest="k", type=int, default=5, help="passages (default 5)")
    search.add_argument(
        "--where",
        metavar="JSON",
        help='only passages whose metadata match: {"year": {"gte": 2018}, "tag": ["a", "b"]} (docs/serving.md)',
    )
    search.add_argument("--json", action="store_true", help="one object per hit and line: id, contents, score")
    bench = commands.add_parser(
        "bench",
        help="load a service with distinct queries; queries per second and latencies",
        **example("rag-serving bench --index index/ --clients 64"),
    )
    bench.add_argument("--url", "--retrieval-url", default=URL, help=f"a running service (default {URL})")
    bench.add_argument("--queries", type=Path, help="file of queries, one a line")
    bench.add_argument(
        "--index",
        metavar="[NAME=]DIR|NAME",
        help="make queries of words from the passages of this directory, and ask the service's index NAME; with --queries: NAME only",
    )
    bench.add_argument("--count", type=int, default=100_000, help="most queries made of an index (default 100,000)")
    bench.add_argument("--clients", type=int, default=16, help="clients, each with one query at a time (default 16)")
    bench.add_argument("--seconds", type=float, default=10.0, help="for how long, unless the queries end before (default 10)")
    bench.add_argument("-k", "--top-k", dest="k", type=int, default=5, help="passages per query (default 5)")
    bench.add_argument("--json", action="store_true", help="the figures as JSON")
    for command in (search, bench, add_mcp(commands, URL)):
        command.add_argument(
            "--token",
            default=os.environ.get("RETRIEVAL_TOKEN", ""),
            help="of the service, if it asks for one (default: the variable RETRIEVAL_TOKEN)",
        )


def run_search(options: argparse.Namespace) -> int:
    """Print the hits; return the exit code."""
    from rag_serving.asking import conditions, hits_of_index, hits_of_service, shown

    where = conditions(options.where) if options.where else None
    if options.index and not options.url:
        hits = hits_of_index(Path(options.index), options.query, options.k, where)
    else:
        url = address_of(options.url or URL, options.index)
        hits = hits_of_service(url, options.token, options.query, options.k, where)
    print("\n".join(map(json.dumps, hits)) if options.json else shown(hits))
    return 0


def _benched(options: argparse.Namespace) -> tuple[str | None, Path | None]:
    """Return the name of the index to be asked, None: the default; and the directory that queries are made of, None: they are given."""
    if options.queries:
        return options.index, None
    if not options.index:
        raise ServingError("no queries: give --queries FILE, one a line, or --index DIR, to make them of its passages")
    # the form of `rag-serving serve --index`
    named = re.fullmatch(f"({NAME})=(.+)", options.index, re.DOTALL)
    return (named[1], Path(named[2])) if named else (None, Path(options.index))


def run_bench(options: argparse.Namespace) -> int:
    """Print the figures; return the exit code: 1 if nothing was answered."""
    from rag_serving.asking import bench, distinct, reachable
    from rag_serving.load import Target, queries

    name, directory = _benched(options)
    url = address_of(options.url, name)
    asked = queries(directory, options.count) if directory else distinct(options.queries)
    if name is not None:
        reachable(url, options.token)
    told = bench(Target(url, options.token), asked, options.clients, options.seconds, options.k)
    lines = (f"{name:<18} {'-' if value is None else value}" for name, value in told.items())
    print(json.dumps(told) if options.json else "\n".join(lines))
    return 0 if told["answered"] else 1
