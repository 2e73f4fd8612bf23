"""Tokenizers of chat and base families: what ends a turn, what a prompt begins with, and what the chat template is told."""

from __future__ import annotations

import json
import unicodedata
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from research_rl.codec import HFCodec, load_codec, turn_tokens
from research_rl.errors import ConfigError
from research_rl.types import Answer, Search, StopReason, Trajectory, Turn
from tests.models import FAMILIES, OWN, WEIGHTS, model_like

MESSAGES = [{"role": "user", "content": "Who?"}]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_response_ends_in_any_eos_of_the_generation_config(tmp_path, family):
    codec = load_codec(model_like(tmp_path, family))
    assert sorted(codec.decode([token]) for token in codec.eos_ids) == sorted(FAMILIES[family][1])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_row_that_nobody_samples_ends_as_the_chat_template_ends_an_assistants_turn(tmp_path, family):
    codec = load_codec(model_like(tmp_path, family))
    assert codec.decode([codec.end_of_turn(MESSAGES)]) == FAMILIES[family][2]
    assert codec.decode([codec.end_of_turn("Question: who?")]) == OWN


def test_without_a_generation_config_the_models_config_says_what_ends_a_response(tmp_path):
    model_like(tmp_path, "gemma")
    (tmp_path / "generation_config.json").unlink()
    end = AutoTokenizer.from_pretrained(tmp_path).convert_tokens_to_ids("<end_of_turn>")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen2", "eos_token_id": [end]}))
    assert end in load_codec(tmp_path).eos_ids


def test_a_tokenizer_without_its_model_is_told_and_its_own_eos_counts(tmp_path):
    AutoTokenizer.from_pretrained(WEIGHTS).save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match="only the tokenizer's own EOS counts"):
        codec = load_codec(tmp_path)
    assert [codec.decode([token]) for token in codec.eos_ids] == [OWN]


def test_the_eos_ids_of_a_loaded_tokenizer_are_read_from_its_model(tmp_path):
    model = model_like(tmp_path / "model", "gemma")
    tokenizer = AutoTokenizer.from_pretrained(model)
    assert load_codec(tokenizer).eos_ids == load_codec(model).eos_ids
    other = AutoTokenizer.from_pretrained(WEIGHTS)
    assert load_codec(other, model).eos_ids == load_codec(model).eos_ids


@pytest.mark.parametrize(
    ("begins", "bos", "text", "chat"),
    [
        (True, None, True, False),
        (False, None, False, False),
        (True, False, False, False),
        (False, True, True, True),
    ],
)
def test_a_prompt_begins_with_the_bos_where_tokenizer_or_setting_say_so(tmp_path, begins, bos, text, chat):
    codec = load_codec(model_like(tmp_path, "qwen3", begins), bos=bos)
    assert codec.decode(codec.encode_prompt("Who?")) == "<bos>" * text + "Who?"
    assert codec.decode(codec.encode_prompt(MESSAGES)).startswith("<bos>" * chat + "<|im_start|>user")


@pytest.mark.parametrize("bos", [None, True, False])
def test_a_bos_is_never_doubled(tmp_path, bos):
    codec = load_codec(model_like(tmp_path, "gemma", begins=True), bos=bos)
    assert codec.decode(codec.encode_prompt(MESSAGES)).count("<bos>") == 1  # the chat template wrote it
    assert codec.decode(codec.encode_prompt("<bos>Who?")).count("<bos>") == 1  # the prompt's own text has it


def test_a_bos_that_the_tokenizer_does_not_have_is_refused():
    with pytest.raises(ConfigError, match="no BOS token: set bos to null or false"):
        load_codec(WEIGHTS, bos=True)


def test_the_chat_template_gets_its_keywords(tmp_path):
    model_like(tmp_path, "qwen3")
    thinking = load_codec(tmp_path).encode_prompt(MESSAGES)
    codec = load_codec(tmp_path, chat_template_kwargs={"enable_thinking": False})
    assert codec.encode_prompt(MESSAGES, "x") == [*thinking, *codec.encode("<think>\n\n</think>\n\nx")]


def test_a_keyword_that_the_rollout_sets_itself_is_refused():
    with pytest.raises(ConfigError, match=r"\['tokenize'\] are set by the rollout"):
        HFCodec(AutoTokenizer.from_pretrained(WEIGHTS), chat_template_kwargs={"tokenize": True})


@given(st.text(st.characters(exclude_characters="\ufffd", exclude_categories=["Cs"]), max_size=30))
@settings(deadline=None)
def test_the_texts_of_tokens_are_the_text_even_where_a_character_has_several(text):
    codec = plain()
    ids = codec.encode(text + "🙂")  # four bytes, no word of the vocabulary
    texts = codec.token_texts(ids)
    assert len(texts) == len(ids)
    assert "".join(texts) == codec.decode(ids)
    assert "\ufffd" not in "".join(texts)


@cache
def plain() -> HFCodec:
    return load_codec(WEIGHTS)


def test_each_turn_gets_the_tokens_that_were_sampled_in_it_with_their_log_probabilities():
    codec = plain()
    first, seen, second = codec.encode("who is it"), codec.encode("the result"), [*codec.encode("it is"), min(codec.eos_ids)]
    ids = [*first, *seen, *second]
    mask = [1] * len(first) + [0] * len(seen) + [1] * len(second)
    turns = (Turn("who is it", Search("it"), "the result"), Turn("it is", Answer("it")))
    logprobs = [-float(place) if sampled else 0.0 for place, sampled in enumerate(mask)]
    told = turn_tokens(codec, Trajectory("?", [], ids, mask, logprobs, turns, StopReason.ANSWERED, True))
    assert ["".join(token["text"] for token in turn) for turn in told] == ["who is it", f"it is{OWN}"]
    assert [token["logprob"] for turn in told for token in turn] == [
        -float(place) for place, sampled in enumerate(mask) if sampled
    ]
    without = turn_tokens(codec, Trajectory("?", [], ids, mask, [], turns, StopReason.ANSWERED, True))
    assert {token["logprob"] for turn in without for token in turn} == {None}


def test_what_a_slow_tokenizer_reads_shows_in_its_ids():
    class Slow:  # of the slow kind there is no normaliser to ask
        eos_token_id, all_special_tokens = 0, ("</s>",)

        def get_added_vocab(self):
            return {}

        def encode(self, text, add_special_tokens):
            return [ord(character) for character in unicodedata.normalize("NFKC", text)]

        def decode(self, ids, **_):
            return "".join(map(chr, ids))

    assert HFCodec(Slow()).as_read("＜answer＞") == "<answer>"
