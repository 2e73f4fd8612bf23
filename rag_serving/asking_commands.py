"""The commands that ask a service: their flags, and what they print."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

from rag_serving.help import example
from rag_serving.mcp_command import add_mcp

URL = "http://127.0.0.1:8000"


def add_clients(commands: Any) -> None:
    """Add the commands that ask a service: search, bench, mcp."""
    search = commands.add_parser(
        "search", help="search once, in an index or by a service, and print what is found",
        **example('rag-serving search "who founded Grom Company" --index index/ -k 2'),
    )  # fmt: skip
    search.add_argument("query", help="what to search for")
    where = search.add_mutually_exclusive_group()
    where.add_argument("--index", type=Path, help="directory made by `rag-serving index`, searched without a service")
    where.add_argument("--url", "--retrieval-url", default=URL, help=f"a running service (default {URL})")
    search.add_argument("-k", "--top-k", dest="k", type=int, default=5, help="passages (default 5)")
    search.add_argument(
        "--where", metavar="JSON",
        help='only passages whose metadata match: {"year": {"gte": 2018}, "tag": ["a", "b"]} (docs/serving.md)',
    )  # fmt: skip
    search.add_argument("--json", action="store_true", help="one object per hit and line: id, contents, score")
    bench = commands.add_parser(
        "bench", help="load a service with distinct queries; queries per second and latencies",
        **example("rag-serving bench --index index/ --clients 64"),
    )  # fmt: skip
    bench.add_argument("--url", "--retrieval-url", default=URL, help=f"a running service (default {URL})")
    source = bench.add_mutually_exclusive_group(required=True)
    source.add_argument("--queries", type=Path, help="file of queries, one a line")
    source.add_argument("--index", type=Path, help="make queries of words from this index's passages")
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
    if options.index:
        hits = hits_of_index(options.index, options.query, options.k, where)
    else:
        hits = hits_of_service(options.url, options.token, options.query, options.k, where)
    print("\n".join(map(json.dumps, hits)) if options.json else shown(hits))
    return 0


def run_bench(options: argparse.Namespace) -> int:
    """Print the figures; return the exit code: 1 if nothing was answered."""
    from rag_serving.asking import bench, distinct
    from rag_serving.load import Target, queries

    asked = queries(options.index, options.count) if options.index else distinct(options.queries)
    told = bench(Target(options.url, options.token), asked, options.clients, options.seconds, options.k)
    print(json.dumps(told) if options.json else "\n".join(f"{name:<18} {value}" for name, value in told.items()))
    return 0 if told["answered"] else 1
