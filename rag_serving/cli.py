"""The command `rag-serving`: index, serve, config, estimate, verify, search, bench, mcp."""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

from rag_serving import MissingExtraError, ServingError
from rag_serving.asking_commands import add_clients, run_bench, run_search
from rag_serving.faults import sentence
from rag_serving.help import example
from rag_serving.mcp_command import run_mcp

CONFIGURED = ("serve", "config")  # commands that read settings


def main(arguments: list[str] | None = None) -> int:
    """Run one command; return the exit code: 1 for a failure, told in one line; 130 if it was interrupted.

    What cannot be parsed ends the program with 2.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        options = make_parser(arguments[:1]).parse_args(arguments)
        commands = {
            "index": _index,
            "serve": _serve,
            "config": _config,
            "estimate": _estimate,
            "verify": _verify,
            "search": run_search,
            "bench": run_bench,
            "mcp": run_mcp,
        }
        return commands[options.command](options)
    except ModuleNotFoundError as error:
        print(f"rag-serving: {MissingExtraError(error.name or 'a dependency')}", file=sys.stderr)
    except (ServingError, MissingExtraError) as error:
        print(f"rag-serving: {error}", file=sys.stderr)
    except OSError as error:
        again = "; then the same command goes on" if arguments[:1] == ["index"] else ""
        print(f"rag-serving: {sentence(error)}{again}", file=sys.stderr)
    except KeyboardInterrupt:
        return 130
    return 1


def make_parser(complete: Collection[str] = CONFIGURED) -> argparse.ArgumentParser:
    """Return the parser. The commands of `CONFIGURED` have an option for each setting only if they are in `complete`."""
    parser = argparse.ArgumentParser(
        prog="rag-serving",
        description="A retrieval service over FlashRAG indexes, the web, or Milvus.",
        **example("rag-serving index --corpus corpus.jsonl --out index/"),
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    index = commands.add_parser(
        "index",
        help="build an index of a corpus; interrupted, the same command goes on",
        **example("rag-serving index --corpus corpus.jsonl --out index/ --engine bm25 dense --encoder intfloat/e5-base-v2"),
    )
    source = index.add_mutually_exclusive_group(required=True)
    source.add_argument("--corpus", type=Path, help="file (.jsonl, .tsv, each also .gz; .parquet) or folder of .txt and .md")
    source.add_argument(
        "--add", type=Path, help="the same, to be added to --index; what that was built with holds for them, too"
    )
    index.add_argument(
        "--index", type=Path, help="with --add: directory made by `rag-serving index`, replaced once all is done"
    )
    index.add_argument("--format", help="flashrag, kilt, dpr, parquet or folder; default: by name and first row")
    index.add_argument("--out", type=Path, help="directory to make (not with --milvus)")
    index.add_argument("--force", action="store_true", help="replace --out if it exists")
    index.add_argument("--engine", nargs="+", default=["bm25"], help="bm25, dense, or both (default bm25)")
    index.add_argument("--k1", type=float, default=1.5, help="bm25: how much repetitions of a word count (default 1.5)")
    index.add_argument("--b", type=float, default=0.75, help="bm25: how much long passages are penalised (default 0.75)")
    index.add_argument("--language", default="en", help="bm25: of stop words and stems: en, de, fr … (default en)")
    index.add_argument(
        "--title-weight", type=int, default=1, help="bm25: how often the words of a title are counted (default 1)"
    )
    index.add_argument("--memory-gb", type=float, default=2.0, help="bm25: GiB for the postings under way (default 2)")
    index.add_argument(
        "--processes",
        "--workers",
        type=int,
        default=0,
        help="bm25: processes that split text into words (default: one per core)",
    )
    index.add_argument("--encoder", default="", help="dense: folder or hub id of a sentence-transformers or transformers model")
    index.add_argument(
        "--faiss", default="Flat", help="dense: Flat, SQ8, HNSW32, IVF4096,Flat, RaBitQfs,Refine(SQ8) … (default Flat)"
    )
    index.add_argument(
        "--ef-construction", type=int, default=40, help="dense, HNSW: candidates compared while a vector is linked (default 40)"
    )
    index.add_argument(
        "--adopt", help="dense: take this FAISS index, made elsewhere of this corpus with this encoder; nothing is encoded"
    )
    index.add_argument("--query-prefix", help="dense: before each query; default: by the model's name")
    index.add_argument("--passage-prefix", help="dense: before each passage; default: by the model's name")
    index.add_argument("--pooling", help="dense: mean, cls, lasttoken or max; default: the model's files, else by its name")
    index.add_argument("--max-length", type=int, default=256, help="dense: tokens of a passage that are read (default 256)")
    index.add_argument("--device", default="cpu", help="dense: cpu, cuda, cuda:1 … (default cpu)")
    index.add_argument(
        "--milvus", "--milvus-uri", help="fill a Milvus collection instead: http://host:19530, or a file for milvus-lite"
    )
    token = "RAG_SERVING_MILVUS_TOKEN"
    index.add_argument(
        "--milvus-token", default=os.environ.get(token, ""), help=f"user:password or API key; prefer {token}: flags can be seen"
    )
    index.add_argument(
        "--collection", "--milvus-collection", default="passages", help="name of the Milvus collection (default passages)"
    )
    estimate = commands.add_parser(
        "estimate",
        help="memory, disk, time and speed of an index before it is built",
        **example("rag-serving estimate --passages 21015324"),
    )
    estimate.add_argument("--passages", type=int, help="how many; default: as many as --corpus seems to have")
    estimate.add_argument("--corpus", type=Path, help="sample these passages instead of synthetic ones")
    estimate.add_argument("--words", type=int, default=100, help="words of a synthetic passage (default 100)")
    estimate.add_argument("--encoder", help="measure this encoder")
    estimate.add_argument("--dimension", type=int, default=768, help="numbers in a vector, without --encoder (default 768)")
    estimate.add_argument("--json", action="store_true", help="bytes and seconds as JSON")
    verify = commands.add_parser(
        "verify",
        help="read an index whole: hashes, structure, passages found by their own words",
        **example("rag-serving verify index/"),
    )
    verify.add_argument("index", type=Path, help="directory made by `rag-serving index`")
    verify.add_argument("--json", action="store_true", help="print one JSON object: index_id, and what was found right")
    add_clients(commands)
    for name, told, typed in (
        ("serve", "serve an index over HTTP", "rag-serving serve --index index/ --port 8000 --workers 4"),
        ("config", "print the settings in force and where each came from", "rag-serving config --config service.yaml"),
    ):
        command = commands.add_parser(
            name,
            help=told,
            description=f"{told}. Every flag can also be RAG_SERVING_NAME, or a name in --config.",
            **example(typed),
        )
        command.add_argument("--config", type=Path, help="YAML file of settings")
        if name in complete:  # the settings' package takes a moment to import
            _add_settings(command)
    return parser


def _add_settings(command: argparse.ArgumentParser) -> None:
    from rag_serving.settings import Settings

    for name, field in Settings.model_fields.items():
        default = field.get_default(call_default_factory=True)
        shown = "" if default in (None, [], {}, "") or "key" in name or "token" in name else f" (default {default})"
        told = f"{field.description}{shown}".replace("%", "%%")
        flag: dict[str, Any] = {"action": "append", "metavar": "[NAME=]DIR"} if name == "index" else {"metavar": "VALUE"}
        command.add_argument(f"--{name.replace('_', '-')}", default=argparse.SUPPRESS, help=told, **flag)


def _settings(options: argparse.Namespace) -> Any:
    from rag_serving.settings import load_settings

    flags = {name: value for name, value in vars(options).items() if name not in ("command", "config")}
    return load_settings(flags, options.config)


def _index(options: argparse.Namespace) -> int:
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    try:
        from rag_serving.indexing import BM25Options, DenseOptions, add_passages, build_index
    except ImportError as error:
        raise MissingExtraError(error.name or "numpy") from error
    dense = DenseOptions(
        options.encoder,
        options.faiss,
        options.query_prefix,
        options.passage_prefix,
        options.pooling,
        options.max_length,
        adopt=options.adopt,
        ef_construction=options.ef_construction,
    )
    if (options.add is None) != (options.index is None) or (options.add and (options.out or options.milvus)):
        raise ServingError("--add FILE and --index DIR go together, and with neither --out nor --milvus")
    if options.ef_construction < 1:
        raise ServingError(f"--ef-construction must be 1 or more; got {options.ef_construction}")
    if not 0 < options.memory_gb < float("inf") or options.processes < 0:
        raise ServingError("--memory-gb must be above 0, and --processes 0 (one per core) or more")
    memory = int(options.memory_gb * (1 << 30))
    bm25 = BM25Options(options.k1, options.b, options.language, options.title_weight)
    if options.add:
        if (bm25, dense, options.engine, options.force) != (BM25Options(), DenseOptions(), ["bm25"], False):
            raise ServingError(
                "--add takes no options of engines, nor --force: what --index was built with holds; for other options, build it anew"
            )
        told = add_passages(options.add, options.index, options.format, options.device, memory, options.processes)
    elif options.milvus:
        from rag_serving.indexing.remote import fill_milvus

        told = fill_milvus(
            options.corpus, options.format, options.milvus, options.collection, options.milvus_token, dense, options.device
        )
    elif options.out is None:
        raise ServingError("give --out DIR, or --milvus URI")
    else:
        wanted = dense if "dense" in options.engine else None
        told = build_index(
            options.corpus,
            options.out,
            options.force,
            options.engine,
            wanted,
            options.format,
            options.device,
            bm25,
            memory,
            options.processes,
        )
    print(json.dumps({name: value for name, value in told.items() if name != "files"}))
    return 0


def _serve(options: argparse.Namespace) -> int:
    from rag_serving.server import serve

    settings, origins = _settings(options)
    for name in ("tokens", "web_key", "milvus_token"):
        if origins[name] == "flag":
            told = f"--{name.replace('_', '-')} can be seen in the process list; prefer RAG_SERVING_{name.upper()}"
            print(f"rag-serving: {told}{' or --tokens-file' if name == 'tokens' else ''}", file=sys.stderr)
    return serve(settings)


def _config(options: argparse.Namespace) -> int:
    from rag_serving.retrievers.base import shown

    settings, origins = _settings(options)
    width = max(map(len, origins))
    for name, value in settings.model_dump(mode="json").items():
        told = shown(value) if isinstance(value, str) and "://" in value else value  # a URL may hold a key
        print(f"{name:<{width}}  {json.dumps(told):<34}  {origins[name]}")
    return 0


def _estimate(options: argparse.Namespace) -> int:
    from rag_serving.indexing.estimate import estimate, table

    print(table(estimate(options.passages, options.corpus, options.words, options.encoder, options.dimension), options.json))
    return 0


def _verify(options: argparse.Namespace) -> int:
    from rag_serving.indexing.manifest import read_manifest
    from rag_serving.indexing.verify import verify

    right = verify(options.index)
    print(
        json.dumps({"index_id": read_manifest(options.index)["index_id"], "right": right}) if options.json else "\n".join(right)
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
