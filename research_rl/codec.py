"""The rollout's view of a Hugging Face tokenizer: how a prompt begins, what the chat template writes, which tokens end a turn."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any

from research_rl.errors import ConfigError, missing_extra
from research_rl.types import PolicyPrompt, Trajectory

_OURS = frozenset(
    {"conversation", "add_generation_prompt", "continue_final_message", "tokenize", "return_dict", "return_tensors"}
)
# an assistant message in conversations that are rendered only to see what the template writes after such a message
_SAID = "Stockholm"


class HFCodec:
    """A `Codec` (see `research_rl.rollout`) over a loaded Hugging Face tokenizer; `load_codec` makes it."""

    def __init__(
        self,
        tokenizer: Any,
        eos_ids: Iterable[int] = (),
        bos: bool | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        """`eos_ids`: ids that end a response besides the tokenizer's EOS; `chat_template_kwargs`: further arguments of the chat template.

        `bos`: whether a prompt begins with the BOS token. None: plain text does if the tokenizer itself puts the BOS before a text, and a
        conversation begins as the chat template writes it. True: every prompt does. False: plain text does not, and a conversation begins
        as the template writes it. The BOS is never doubled.

        Raises:
            ConfigError: `bos` is True and the tokenizer has no BOS, or a keyword for the template is one that the rollout sets.
        """
        if bos and tokenizer.bos_token_id is None:
            raise ConfigError("bos is true, but the tokenizer has no BOS token: set bos to null or false")
        if wrong := sorted(_OURS & set(chat_template_kwargs or ())):
            raise ConfigError(f"the chat template's keywords {wrong} are set by the rollout: leave them out")
        self._tokenizer, self._bos = tokenizer, bos
        self._kwargs = dict(chat_template_kwargs or {})
        self.eos_ids = frozenset({tokenizer.eos_token_id, *eos_ids} - {None})
        self.special_tokens = tuple(sorted({*tokenizer.all_special_tokens, *tokenizer.get_added_vocab()}))

    def encode(self, text: str) -> list[int]:
        """Return ids without adding any special token."""
        return self._tokenizer.encode(text, add_special_tokens=False)

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids, special tokens included."""
        return self._tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)

    def as_read(self, text: str) -> str:
        """Return a text after the tokenizer's own normalisation. Some tokenizers fold Unicode forms or case, or drop invisible characters,
        so that a look-alike of a tag becomes the tag. U+2581, which some of them write for a space, is turned back into a space."""
        if not hasattr(self._tokenizer, "backend_tokenizer"):  # a slow tokenizer shows its normalisation in the ids only
            return self.decode(self.encode(text))
        normalizer = self._tokenizer.backend_tokenizer.normalizer
        return normalizer.normalize_str(text).replace("\u2581", " ").removeprefix(" ") if normalizer else text

    def token_texts(self, ids: Sequence[int]) -> list[str]:
        """Return the text of each id; joined, they are the decoded whole. If several ids make up one character, the last one gets it."""
        texts, before, done = [], 0, 0
        for end in range(1, len(ids) + 1):
            # decode each id together with those before it: some tokenizers drop a space at the beginning of a text
            known, text = self.decode(ids[before:done]), self.decode(ids[before:end])
            whole = end == len(ids) or not text.endswith("\ufffd")
            texts.append(text[len(known) :] if whole else "")
            if whole:
                before, done = done, end
        return texts

    def encode_prompt(self, prompt: PolicyPrompt, prefill: str = "") -> list[int]:
        """Return the ids of a method's prompt (plain text as it is, messages and tools through the chat template), followed by
        those of `prefill`, which opens the response."""
        return self.encode_prompts([prompt], prefill)[0]

    def encode_prompts(self, prompts: Sequence[PolicyPrompt], prefill: str = "") -> list[list[int]]:
        """Return the ids of many prompts, as `encode_prompt` does; a fast tokenizer takes them all at once."""
        texts = [prompt if isinstance(prompt, str) else self._render(prompt, add_generation_prompt=True) for prompt in prompts]
        encoded = self._tokenizer([text + prefill for text in texts], add_special_tokens=False, return_attention_mask=False)
        first = [self._tokenizer.bos_token_id]
        return [
            [*first, *ids] if self._wants_bos(prompt) and ids[:1] != first else list(ids)
            for prompt, ids in zip(prompts, encoded["input_ids"], strict=True)
        ]

    def _wants_bos(self, prompt: PolicyPrompt) -> bool:
        return self._bos if self._bos is not None else isinstance(prompt, str) and self._begins_text

    def end_of_turn(self, prompt: PolicyPrompt) -> int:
        """Return the id of the EOS that ends a response to such a prompt, for supervised rows, whose EOS is not sampled.

        If the prompt is a list of messages, it is the EOS that the chat template writes after an assistant message; if it is plain text,
        the tokenizer's own.

        Raises:
            ConfigError: there is no EOS at all.
        """
        return self._own_eos if isinstance(prompt, str) else self._template_eos

    def _render(self, prompt: Any, add_generation_prompt: bool) -> str:
        messages, tools = (prompt["messages"], prompt["tools"]) if isinstance(prompt, Mapping) else (prompt, None)
        return str(
            self._tokenizer.apply_chat_template(
                messages, tools=tools, add_generation_prompt=add_generation_prompt, tokenize=False, **self._kwargs
            )
        )

    def tool_results(self, contents: Sequence[str]) -> str:
        """Return what the chat template writes between an assistant message that called tools and the assistant's next message.

        `contents`: the results of the calls, in order. The text is cut out of a rendered conversation, so that it includes whatever the
        template does to a result (JSON, white space).

        Raises:
            ConfigError: the template does not show results of tools, or does not repeat assistant messages.
        """
        asked = {"role": "user", "content": "?"}
        results = [
            {"role": "tool", "name": "f", "tool_call_id": f"call{number:05}", "content": content}
            for number, content in enumerate(contents)
        ]
        text = self._render([asked, {"role": "assistant", "content": _SAID}, *results], add_generation_prompt=True)
        _, found, after = text.partition(_SAID)
        _, ended, frame = after.partition(self._template_end)
        if not (found and ended) or (contents and not frame.strip()):
            raise ConfigError(
                "the chat template does not show results of tools: take a model whose template does, or give it such a template"
            )
        return frame

    @cached_property
    def _begins_text(self) -> bool:
        bos = self._tokenizer.bos_token_id
        return bos is not None and list(self._tokenizer("x")["input_ids"])[:1] == [bos]

    @cached_property
    def _own_eos(self) -> int:
        if not self.eos_ids:
            raise ConfigError(
                "neither the tokenizer nor the model's generation config names an EOS token: nothing could end a turn"
            )
        own = self._tokenizer.eos_token_id
        return min(self.eos_ids) if own is None else own

    @cached_property
    def _template_eos(self) -> int:
        return next((token for token in self._after_said if token in self.eos_ids), self._own_eos)

    @cached_property
    def _template_end(self) -> str:
        return self.decode([self._template_eos])

    @property
    def template(self) -> str:
        """The text of the chat template; empty if there is none. If there are several, the one for tools."""
        found = self._kwargs.get("chat_template") or self._tokenizer.chat_template or ""
        return found if isinstance(found, str) else found.get("tool_use", found.get("default", ""))

    @cached_property
    def _after_said(self) -> list[int]:
        """The ids of what the chat template writes after an assistant message; empty if it does not repeat such messages."""
        # another turn follows, because some templates (GLM) end an assistant message with the token that opens the next turn
        asked = {"role": "user", "content": "?"}
        text = self._render([asked, {"role": "assistant", "content": _SAID}, asked], add_generation_prompt=False)
        _, found, after = text.rpartition(_SAID)
        return self.encode(after) if found else []

    def unheeded_end(self) -> str | None:
        """Return the special token that the chat template writes after an assistant message if it is not among `eos_ids`, else None."""
        first = self._after_said[:1]
        text = self.decode(first)
        return text if first and text in self.special_tokens and first[0] not in self.eos_ids else None


def load_codec(
    tokenizer: Any,
    model: str | Path | None = None,
    bos: bool | None = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> HFCodec:
    """Return the codec of a tokenizer (loaded, or its directory or hub id). A response ends at any EOS at which the engine stops.

    `model`: directory or hub id of the model, from which the EOS ids are read (see `eos_ids`); default: the tokenizer's.

    Raises:
        ConfigError: see `HFCodec`; or there is no such tokenizer.
        MissingExtraError: transformers is not installed.
    """
    try:
        from transformers import AutoTokenizer
    except ImportError as error:
        raise missing_extra("transformers", "eval") from error
    try:
        loaded = AutoTokenizer.from_pretrained(tokenizer) if isinstance(tokenizer, (str, Path)) else tokenizer
    except (OSError, ValueError) as error:
        if Path(tokenizer).is_dir():
            raise ConfigError(f"{tokenizer} holds no tokenizer: {str(error).strip().splitlines()[0]}") from error
        raise ConfigError(
            f"no tokenizer {tokenizer}: there is no such directory, and no model of that name on the Hugging Face hub can be read from here"
        ) from error
    return HFCodec(loaded, eos_ids(str(model or loaded.name_or_path)), bos, chat_template_kwargs)


def encode_row(codec: HFCodec, row: Mapping[str, Any]) -> tuple[list[int], list[int]]:
    """Return ids and mask of a row for supervised training: its `prompt` (JSON: a text, or messages), `prefill` and `segments`.

    Each segment is encoded by itself, as in a rollout. The mask is 1 on segments with `learn`, which the policy wrote, and on EOS. There is
    one EOS at the end of the response or, for a method that calls tools, one after each of the policy's messages.
    """
    prompt = json.loads(row["prompt"])
    ids = codec.encode_prompt(prompt, row["prefill"])
    mask = [0] * len(ids)
    end, calls_tools = codec.end_of_turn(prompt), isinstance(prompt, dict)
    for segment in row["segments"]:
        new = codec.encode(segment["text"]) + ([end] if calls_tools and segment["learn"] else [])
        ids += new
        mask += [int(segment["learn"])] * len(new)
    return (ids, mask) if calls_tools else ([*ids, end], [*mask, 1])


def turn_tokens(codec: HFCodec, trajectory: Trajectory) -> list[list[dict[str, Any]]]:
    """Return, per turn, text and log-probability of each token that the policy sampled in it, the EOS included.

    The log-probability is None if the engine returned none. A turn's tokens are one run of ones in the response mask.
    """
    turns = []
    for sampled, run in groupby(range(len(trajectory.response_ids)), trajectory.response_mask.__getitem__):
        if sampled:
            places = list(run)
            texts = codec.token_texts([trajectory.response_ids[place] for place in places])
            logprobs = [trajectory.logprobs[place] for place in places] if trajectory.logprobs else [None] * len(places)
            turns.append([{"text": text, "logprob": logprob} for text, logprob in zip(texts, logprobs, strict=True)])
    return turns


def eos_ids(model: str) -> list[int]:
    """Return the ids, besides the tokenizer's own EOS, at which an engine ends a response of a model (directory or hub id).

    They are read from generation_config.json or, if there is none, from config.json, as in vLLM. Without both there is a warning.
    """
    from transformers import GenerationConfig, PretrainedConfig

    try:
        named = GenerationConfig.from_pretrained(model).eos_token_id
    except OSError:  # no such file
        try:
            config = PretrainedConfig.get_config_dict(model)[0]  # empty for a directory without the file
        except OSError:
            config = {}
        named = config.get("eos_token_id")
        if not config:
            warnings.warn(
                f"neither generation_config.json nor config.json can be read from {model!r}: only the tokenizer's own EOS counts as "
                "the end of a response. If the model has others, give a directory or hub id that has these files",
                stacklevel=3,
            )
    return [] if named is None else [named] if isinstance(named, int) else [int(number) for number in named]
