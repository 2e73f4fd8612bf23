"""The card of a released model: Markdown, as the Hugging Face hub reads it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any

from research_rl.files import sha256
from research_rl.inference.protocol import MANIFEST
from research_rl.types import PolicyPrompt

FIGURES = ("em", "f1", "cover_em_substring", "searches", "well_formed")  # shown if an evaluation's summary has them
_CARD = Template(f"""---
library_name: transformers
pipeline_tag: text-generation
tags: [search-agent, reinforcement-learning, research-rl]
---
# $name

A language model that reasons with a search engine, trained by reinforcement learning with research-rl $version.

| | |
|---|---|
| method | `$method`, options $options |
| started from | `$start` |
| trained | $stage$step steps, advantages by `$estimator` |
| index that it searched in training | $indexes |
$limits

## How to ask it

It searches in the middle of its answer. So it needs a retrieval service, and a client that stops at $stop, searches, and
appends the passages. The client reads all of this from `{MANIFEST}`.

```
rag-serving serve --index INDEX --port 8000
vllm serve $name --port 9000
research-rl chat --model-url http://127.0.0.1:9000/v1 --tokenizer $name --retrieval-url http://127.0.0.1:8000
```

The prompt, with the question in the place of `$$question`:

```
$prompt
```

${{opened}}Its tags: $tags. With another prompt, other limits or another corpus than in training, it may do worse than the figures
below.

## Measured

$figures

## Trained on

$data

## Files

| file | bytes | SHA-256 |
|---|---|---|
$weights

## Limits

It answers from the passages it finds, and from what its weights remember; either may be wrong. It was rewarded for short answers
to questions of fact, not for refusing, and not for safety. Whoever can write to the corpus can influence its answers.
""")


def card(
    name: str, manifest: Mapping[str, Any], model: Path, figures: Sequence[Mapping[str, Any]], data: Sequence[Mapping[str, Any]]
) -> str:
    """Return the card of the model in a directory, from its manifest, summaries of evaluations, and cards of data sets."""
    start = Path(manifest["model"])
    limits = {
        "passages of a search (top-k)": manifest["top_k"],
        "searches": manifest["max_searches"],
        "tokens of a turn": manifest["max_turn_tokens"],
        "tokens of an observation": manifest["max_observation_tokens"],
        "tokens of a response": manifest["response_tokens"],
    }
    return _CARD.substitute(
        name=name, version=manifest["research_rl"], method=manifest["method"], step=manifest["step"],
        estimator=manifest["adv_estimator"], stop=_code(manifest["stop"]), tags=_code(manifest["tags"]),
        options=_code({key: value for key, value in manifest["method_options"].items() if not key.endswith(("prompt", "prompt_file"))}),
        start="/".join(start.parts[-4:]) if start.is_absolute() else start,
        stage=f"stage {manifest['stage']}, " if manifest["stage"] else "",
        indexes="; ".join(str(index or "unknown (no index id given)") for index in (manifest.get("indexes") or {}).values()) or "unknown",
        limits="\n".join(f"| at most: {what} | {'no limit' if most is None else most} |" for what, most in limits.items()),
        prompt=_prompt(manifest["prompt"]),
        opened=f"The response is opened by {_code(manifest['prefill'])}. " if manifest["prefill"] else "",
        figures=_figures(figures), data=_data(data),
        weights="\n".join(
            f"| `{file.name}` | {file.stat().st_size:,} | `{sha256(file)}` |" for file in sorted(model.glob("*.safetensors"))
        ),
    )  # fmt: skip  # many arguments


def _prompt(prompt: PolicyPrompt) -> str:
    if isinstance(prompt, str):
        return prompt
    messages, tools = (prompt["messages"], prompt["tools"]) if isinstance(prompt, dict) else (prompt, [])
    parts = [f"{message['role']}: {message['content']}" for message in messages]
    return "\n\n".join([*parts, *(f"tool: {json.dumps(tool, ensure_ascii=False)}" for tool in tools)])


def _code(value: Any) -> str:
    return f"`{json.dumps(value, ensure_ascii=False)}`"


def _figures(summaries: Sequence[Mapping[str, Any]]) -> str:
    if not summaries:
        return "Nothing was given when this card was written (`research-rl export --measured SUMMARY.json`)."
    names = [name for name in FIGURES if any(name in one for one in summaries)]
    lines = [f"| summary | questions | {' | '.join(names)} |", f"|---|---|{'---|' * len(names)}"]
    for one in summaries:
        lines.append(f"| {one['file']} | {one.get('n', '–')} | {' | '.join(_figure(one, name) for name in names)} |")
    return "\n".join(lines) + "\n\nIn brackets: 95 % bootstrap intervals over questions. EM and F1 with SQuAD's normalisation."


def _figure(summary: Mapping[str, Any], name: str) -> str:
    if name not in summary:
        return "–"
    low, high = (summary.get("intervals") or {}).get(name) or (None, None)
    return f"{summary[name]:.3f}" + ("" if low is None else f" [{low:.3f}, {high:.3f}]")


def _data(cards: Sequence[Mapping[str, Any]]) -> str:
    if not cards:
        return "Nothing was given when this card was written (`research-rl export --data SPLIT.card.json`)."
    told = ("dataset", "split", "data_sources", "source", "dropped", "seed")
    return "\n".join(
        f"- {one['file']}: {one['questions']} questions; {_code({name: one[name] for name in told if name in one})}"
        for one in cards
    )
