"""The protocol that a checkpoint speaks: read back from the manifest that training wrote beside it (`research_rl.json`)."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from research_rl.errors import ConfigError
from research_rl.methods import check_method, load_method, method_defaults, method_names
from research_rl.methods.base import Method
from research_rl.types import Budget, Conversation, Message

MANIFEST = "research_rl.json"
TRUST = "RESEARCH_RL_TRUST_MANIFEST"  # the variable that is 1 if manifests may name code and servers
_OURS = ("research_rl.methods.", "research_rl.tools.")  # dotted paths to what every installation has
TOP_K, RESPONSE_TOKENS = 5, 8192  # for a method that is named explicitly


@dataclass(frozen=True)
class Protocol:
    """Method and budgets of a checkpoint, the ids of the indexes that it was trained over (by URL), and how prompts are tokenized.

    `bos` and `chat_template_kwargs` are those of `research_rl.codec.HFCodec`.
    """

    method: Method
    budget: Budget
    indexes: dict[str, Any] = field(default_factory=dict)
    bos: bool | None = None
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)


def prompt_hash(method: Method) -> str:
    """Return the SHA-256 of a method's prompt for the question `$question`, followed by its prefill."""
    prompt = method.prompt("$question")
    shown = prompt if isinstance(prompt, str) else json.dumps(prompt)
    return hashlib.sha256((shown + method.prefill).encode()).hexdigest()


def read_protocol(directory: Path, trusted: bool = False) -> Protocol | None:
    """Return the protocol of the model in `directory`; None if it has no manifest (a model that was not trained here).

    If the prompt file of the training is missing, its text is taken from the manifest. `trusted`: the manifest may name code and servers.

    Raises:
        ConfigError: the manifest is damaged, names code or a server without being trusted, or the method's prompt has changed since the
            model was trained.
    """
    path = directory / MANIFEST
    if not path.is_file():
        return None
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        defaults, given = dict(manifest.get("method_defaults", {})), dict(manifest["method_options"])
        budget = Budget(
            manifest["response_tokens"],
            manifest["max_turn_tokens"],
            manifest["max_searches"],
            manifest["max_observation_tokens"],
            manifest["top_k"],
        )
        name, expected, prompt = manifest["method"], manifest["prompt_sha256"], manifest["prompt"]
        # a manifest without these two belongs to a model trained without a BOS and without arguments for the template
        bos, kwargs = manifest.get("bos", False), dict(manifest.get("chat_template_kwargs") or {})
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} is no manifest of research-rl ({error!r})") from None
    if not trusted:
        _refuse_strangers(path, name, given)
    known = method_defaults(name)  # an option that nobody set may be gone in a later version
    options = {option: value for option, value in defaults.items() if option in known} | given
    method = _method(name, options, prompt, expected)
    if prompt_hash(method) != expected:
        raise ConfigError(
            f"{path}: the prompt of {name} with {options} differs from the one that the model was trained with "
            f"(hash {prompt_hash(method)[:12]}, trained with {expected[:12]}); name a method to ask the model in another way"
        )
    return Protocol(method, budget, dict(manifest.get("indexes") or {}), bos, kwargs)


def _refuse_strangers(path: Path, name: object, options: Mapping[str, Any]) -> None:
    """Refuse a manifest that names code to import or a server to ask: whoever wrote it would run code here, or get the user's token."""
    tools = options.get("tools") or ()
    paths = [str(one) for one in (name, *([tools] if isinstance(tools, str) else tools)) if "." in str(one)]
    named = [f"the code {one}" for one in paths if not one.startswith(_OURS)]
    if options.get("mcp"):
        named.append(f"the server {options['mcp']}")
    if named and os.environ.get(TRUST) != "1":
        raise ConfigError(
            f"{path} names {', '.join(named)}, to be used with your rights and tokens. If you trust whoever made it, set {TRUST}=1; "
            "or name the method yourself"
        )


def choose_protocol(
    method: str | Method | None, options: Mapping[str, Any], directory: Path, limits: Mapping[str, int | None],
    bos: bool | None = None, chat_template_kwargs: Mapping[str, Any] | None = None,
) -> Protocol:  # fmt: skip  # many parameters
    """Return the method that is named explicitly (with the default budget), or the protocol of the manifest in `directory`.

    `limits`, `bos` and `chat_template_kwargs` override the manifest's unless they are None.

    Raises:
        ConfigError: there is neither; the method, an option of it or a limit is unknown; options are given without a method;
            `chat_template_kwargs` is no mapping.
    """
    if unknown := sorted(set(limits) - {limit.name for limit in fields(Budget)}):
        raise ConfigError(f"unknown limits {unknown}; valid: {', '.join(limit.name for limit in fields(Budget))}")
    if chat_template_kwargs is not None and not isinstance(chat_template_kwargs, Mapping):
        raise ConfigError(
            f'the chat template takes keywords, for example {{"enable_thinking": false}}, got {chat_template_kwargs!r}'
        )
    if method is not None:
        chosen = Protocol(
            check_method(method) if isinstance(method, Method) else load_method(method, **options),
            Budget(RESPONSE_TOKENS, top_k=TOP_K),
        )
    elif options:
        raise ConfigError(f"method options {dict(options)} need a method: name it, too")
    elif protocol := read_protocol(directory):
        chosen = protocol
    else:
        raise ConfigError(
            f"{directory} has no {MANIFEST}, so nothing says how this model was trained to search: "
            f"name the method, one of {', '.join(method_names())} or a dotted path"
        )
    return replace(
        chosen,
        budget=replace(chosen.budget, **{name: value for name, value in limits.items() if value is not None}),
        bos=chosen.bos if bos is None else bos,
        chat_template_kwargs=dict(chosen.chat_template_kwargs if chat_template_kwargs is None else chat_template_kwargs),
    )


def _method(name: str, options: dict[str, Any], prompt: str | list[Message] | Conversation, expected: str) -> Method:
    file = options.get("prompt_file")
    if file and Path(file).is_file():
        method = load_method(name, **options)
        if prompt_hash(method) == expected:
            return method
    if file:  # the prompt file is missing or has changed: its text is in the manifest
        options = {key: value for key, value in options.items() if key != "prompt_file"} | {"prompt": _template(prompt)}
    return load_method(name, **options)


def _template(prompt: str | list[Message] | Conversation) -> str:
    """Return the template of a prompt that was made for the question `$question`. A system message is a template as it stands."""
    if isinstance(prompt, Mapping):
        prompt = prompt["messages"]
    if not isinstance(prompt, str) and prompt[0]["role"] == "system":
        return prompt[0]["content"]
    text = prompt if isinstance(prompt, str) else prompt[-1]["content"]
    return text.replace("$", "$$").replace("$$question", "$question")
