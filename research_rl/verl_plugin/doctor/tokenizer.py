"""Checks that the model's tokenizer suits the method's protocol."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from research_rl.verl_plugin.doctor.finding import Finding, check, error, ok, warning
from research_rl.verl_plugin.doctor.setup import Setup
from research_rl.verl_plugin.rows import prompt_codec


@check("model files", "configuration and tokenizer of the model are on this machine")
def model_files(setup: Setup) -> Iterator[Finding]:
    """Report what is missing on this machine; the checks that need it are made when the trainer has it."""
    for what, there, why in (
        ("configuration", setup.model, setup.why_no_model),
        ("tokenizer", setup.tokenizer, setup.why_no_tokenizer),
    ):
        if there is None:
            yield warning(
                f"no {what} at {setup.model_path} here ({why}): what depends on it is checked when the trainer has loaded it",
                "",
                "If it should be here: correct actor_rollout_ref.model.path",
            )


@check("prompt", "the method's prompt suits the tokenizer and its chat template", "settings", "tokenizer")
def prompt(setup: Setup) -> Iterator[Finding]:
    """Check the codec of prompts, and that a response ends where the chat template ends an assistant message."""
    settings = setup.settings
    assert settings is not None
    prompt_codec(setup.tokenizer, settings, setup.config.data)  # raises if something is wrong
    if setup.codec is None or isinstance(settings.load().prompt("?"), str):
        return
    settings.load().check_template(setup.codec)  # likewise
    if (end := setup.codec.unheeded_end()) is not None:
        yield warning(
            "the engine should end a response at the token that the chat template writes after an assistant message",
            f"{end!r}, which is neither the tokenizer's EOS nor among eos_token_id of generation_config.json",
            "Add its id to eos_token_id in the model's generation_config.json, or take the model that was trained with this template",
        )


@check("tags", "no token joins a method's tag with other text", "settings", "tokenizer")
def tags(setup: Setup) -> Iterator[Finding]:
    """Check that no token covers both a part of a tag and neighbouring text, and that decoding does not drop tags."""
    settings, tokenizer = setup.settings, setup.tokenizer
    assert settings is not None
    method = settings.load()
    words = sorted({*method.tags, *method.stop})
    if not tokenizer.is_fast:
        yield ok("not checked: a slow tokenizer does not say which characters a token covers")
        return
    if torn := [word for word in words if _shared(tokenizer, word)]:
        yield warning(
            "no token should hold the end of a tag and the text beside it: generation stops after the whole token, so that a turn and its "
            "mask end some characters after the tag",
            f"{_some(torn)} beside letters",
            "Add the tags to the tokenizer (add_tokens, and resize the model's embedding), or have the method use other tags",
        )
    if special := [word for word in words if word in tokenizer.all_special_tokens]:
        yield warning(
            "tags should not be special tokens: whatever decodes without these (skip_special_tokens, the default of servers) loses them",
            _some(special),
            "Add them as ordinary tokens (special=False)",
        )
    if unknown := [
        word for word in words if tokenizer.unk_token_id is not None and tokenizer.unk_token_id in _ids(tokenizer, word)
    ]:
        yield error(
            "the tokenizer must be able to write the method's tags", f"unknown tokens in {_some(unknown)}", "Take another model"
        )


def _ids(tokenizer: Any, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def _shared(tokenizer: Any, word: str) -> bool:
    """Return whether a token of `x<word>y` covers characters on both sides of an end of the word."""
    text = f"x{word}y"
    offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    return any(start < edge < end for start, end in offsets for edge in (1, len(text) - 1))


def _some(words: Sequence[str]) -> str:
    return ", ".join(map(repr, words[:4])) + (f" and {len(words) - 4} more" if len(words) > 4 else "")
