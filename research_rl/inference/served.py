"""What all commands that roll out over a model's server share: their options, and the objects made from them."""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from research_rl.codec import HFCodec, load_codec
from research_rl.command_line import json_object
from research_rl.inference.openai_server import CompletionsServer
from research_rl.inference.protocol import MANIFEST, RESPONSE_TOKENS, TOP_K, choose_protocol
from research_rl.inference.sampling import PER_RUN, Busy, Outcome, same_sampling, sample
from research_rl.methods.base import Method
from research_rl.retrieval import RetrievalClient, RetrievalSettings
from research_rl.types import Budget, Trajectory


class Served(NamedTuple):
    """A method, the tokenizer of the model that follows it, the limits of its rollouts, and the model's server."""

    method: Method
    codec: HFCodec
    budget: Budget
    server: CompletionsServer


def add_questions(parser: argparse.ArgumentParser) -> None:
    """Add the options of questions and retrieval service."""
    parser.add_argument("--questions", type=Path, required=True, help="FlashRAG questions, JSON lines")
    parser.add_argument("--retrieval-url", default="http://127.0.0.1:8000", help="the retrieval service")


def add_model(parser: argparse.ArgumentParser) -> None:
    """Add the options of server, method and limits. A command changes their defaults by `set_defaults`."""
    parser.add_argument("--model-url", default="http://127.0.0.1:9000/v1", help="base URL of the server, ending in /v1")
    parser.add_argument("--model", required=True, help="the model's name on that server")
    parser.add_argument("--tokenizer", required=True, help="directory or hub id of its tokenizer")
    parser.add_argument(
        "--method", default=None, help="name or dotted path of the Method; default: what the manifest beside the tokenizer says"
    )
    parser.add_argument("--method-options", type=json_object, default={}, help='JSON, for example {"prompt_file": "p.txt"}')
    add_prompting(parser)
    parser.add_argument(
        "--manifest", type=Path, default=None, help=f"directory of {MANIFEST}, if it is not beside the tokenizer"
    )
    parser.add_argument("--temperature", type=float, default=0.0, help="sampling temperature; 0: always the most likely token")
    add_limits(parser)


def add_limits(parser: argparse.ArgumentParser) -> None:
    """Add the limits of a rollout; without them the manifest's hold."""
    parser.add_argument("--top-k", type=int, default=None, help=f"passages of a search (default {TOP_K}, or the manifest's)")
    parser.add_argument(
        "--response-tokens",
        type=int,
        default=None,
        help=f"most tokens of a response; default {RESPONSE_TOKENS}, or the manifest's; never more than the server's context leaves",
    )
    parser.add_argument("--max-searches", type=int, default=None, help="most searches of a rollout")
    parser.add_argument(
        "--max-turn-tokens", type=int, default=None, help="most sampled tokens of a turn; default: the manifest's, or no limit"
    )
    parser.add_argument(
        "--max-observation-tokens",
        type=int,
        default=None,
        help="most tokens of a search's result; default: the manifest's, or no limit",
    )


def add_prompting(parser: argparse.ArgumentParser) -> None:
    """Add the options of how a prompt is tokenized."""
    parser.add_argument(
        "--chat-template-kwargs",
        type=json_object,
        default=None,
        help='JSON, for example {"enable_thinking": false}; default: the manifest\'s',
    )
    parser.add_argument(
        "--bos",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="every prompt begins with the BOS, or no plain-text prompt does; default: the manifest's, or as the tokenizer does it",
    )


def add_sampling(parser: argparse.ArgumentParser) -> None:
    """Add the further options of `sample_served`."""
    parser.add_argument("--concurrency", type=int, default=64, help="number of rollouts under way at a time")


def limits(options: argparse.Namespace) -> dict[str, int | None]:
    """Return the limits that `add_limits` added, as fields of `Budget`; None: not given."""
    return {
        "response_tokens": options.response_tokens,
        "turn_tokens": options.max_turn_tokens,
        "searches": options.max_searches,
        "observation_tokens": options.max_observation_tokens,
        "top_k": options.top_k,
    }


def open_served(options: argparse.Namespace) -> Served:
    """Return method, tokenizer, budget and server of the options: the method that is named, else the protocol of the model's manifest.

    Raises:
        ConfigError: the method or one of its options is unknown, or none is named and the model has no manifest.
        MissingExtraError: transformers is not installed.
    """
    directory = options.manifest or Path(options.tokenizer)
    protocol = choose_protocol(
        options.method, options.method_options, directory, limits(options), options.bos, options.chat_template_kwargs
    )
    codec = load_codec(options.tokenizer, bos=protocol.bos, chat_template_kwargs=protocol.chat_template_kwargs)
    protocol.method.check_template(codec)
    return Served(
        protocol.method,
        codec,
        protocol.budget,
        CompletionsServer(options.model_url, options.model, options.temperature),
    )


def keep_settings(options: argparse.Namespace, log: Path, may_change: Iterable[str] = ()) -> None:
    """Write a command's options beside its log; `may_change` names those that may differ between runs.

    Raises:
        DataError: the log was made with other options.
    """
    fixed = {name: str(value) for name, value in vars(options).items() if name not in PER_RUN.union(may_change)}
    same_sampling(log.with_name(f"{log.stem}.settings.json"), fixed)


def sample_served(
    options: argparse.Namespace, served: Served, questions: Sequence[dict[str, Any]], samples: int, log: Path,
    outcome: Callable[[Trajectory, dict[str, Any]], Outcome], may_change: Iterable[str] = (),
    enough: Callable[[Outcome], bool] | None = None,
) -> dict[str, float]:  # fmt: skip  # many parameters
    """Make the rollouts that the log does not have yet, and return the figures of this run.

    They are: seconds, the share of them in which the model was generating, the number of requests to its server that were repeated after
    a lost connection, and the number of rollouts whose budget was made smaller by the server's context.

    The options are saved beside the log, and must be those of the log; `may_change` names those that may differ.

    Raises:
        RetrievalError, GenerationError: a server stays unavailable. Finished rollouts are in the log.
        GenerationError: a question's prompt alone fills the context; likewise.
        DataError: the log was made with other options.
    """
    keep_settings(options, log, may_change)
    generate = Busy(served.server.generate)
    started = time.monotonic()

    async def run() -> int:
        async with RetrievalClient(RetrievalSettings(options.retrieval_url)) as client:
            try:
                return await sample(
                    served.method, served.codec, questions, samples, served.budget, generate, client.search, log, outcome,
                    options.concurrency, enough, served.server.context, client,
                )  # fmt: skip  # many arguments
            except ExceptionGroup as group:  # the first error is enough
                raise group.exceptions[0] from None
            finally:
                await served.server.close()

    reduced = asyncio.run(run())
    seconds = time.monotonic() - started
    return {
        "seconds": round(seconds, 1),
        "engine_busy_share": round(generate.seconds / seconds, 4),
        "retries": served.server.retries,
        "reduced_budgets": reduced,
    }
