"""What every command that rolls out over a model's server needs: its options, and what they stand for."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import NamedTuple

from evaluation.openai_server import CompletionsServer
from research_rl.errors import missing_extra
from research_rl.methods.base import Method, load_method
from research_rl.rollout import HFCodec
from research_rl.types import Budget


class Served(NamedTuple):
    """A method, the tokenizer of the model that follows it, the limits of its rollouts, and the model's server."""

    method: Method
    codec: HFCodec
    budget: Budget
    server: CompletionsServer


def add_questions(parser: argparse.ArgumentParser) -> None:
    """Add questions and retrieval service."""
    parser.add_argument("--questions", type=Path, required=True, help="FlashRAG questions, JSON lines")
    parser.add_argument("--retrieval-url", default="http://127.0.0.1:8000")
    parser.add_argument("--top-k", type=int, default=5)


def add_model(parser: argparse.ArgumentParser) -> None:
    """Add server, method and limits; a command's own defaults are set by `set_defaults`."""
    parser.add_argument("--model-url", default="http://127.0.0.1:9000/v1", help="base URL of the server, ending in /v1")
    parser.add_argument("--model", required=True, help="the model's name on that server")
    parser.add_argument("--tokenizer", required=True, help="directory or hub id of its tokenizer")
    parser.add_argument("--method", default="research", help="name or dotted path of the Method")
    parser.add_argument("--method-options", type=json.loads, default={}, help='JSON, for example {"prompt_file": "p.txt"}')
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--response-tokens", type=int, default=8192)
    parser.add_argument("--max-searches", type=int, default=None)
    parser.add_argument("--max-turn-tokens", type=int, default=None, help="sampled tokens of a turn")
    parser.add_argument("--max-observation-tokens", type=int, default=None, help="tokens of a search's result")


def open_served(options: argparse.Namespace) -> Served:
    """Return what the options stand for.

    Raises:
        ConfigError: the method or one of its options is unknown.
        MissingExtraError: transformers is not installed.
    """
    try:
        from transformers import AutoTokenizer
    except ImportError as error:
        raise missing_extra("transformers", "eval") from error
    return Served(
        load_method(options.method, **options.method_options),
        HFCodec(AutoTokenizer.from_pretrained(options.tokenizer)),
        Budget(
            options.response_tokens,
            options.max_turn_tokens,
            options.max_searches,
            options.max_observation_tokens,
            options.top_k,
        ),
        CompletionsServer(options.model_url, options.model, options.temperature),
    )
