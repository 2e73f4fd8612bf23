"""What the rollout puts between two messages that call tools is what the model's own chat template would put there."""

from __future__ import annotations

import random

import pytest

pytest.importorskip("tokenizers")

from research_rl.codec import HFCodec
from research_rl.errors import ConfigError
from research_rl.methods import load_method
from research_rl.methods.tool_calls import ToolCallsMethod
from research_rl.tools.formats import FORMATS, format_of
from tests.models import tokenizer_like
from tests.tool_families import FAMILIES, codec_of, tokenizer_of

PIECES = [
    "Marie Curie", "é€𝔘", "{}", '{"name": "search"}', "<tool_call>", "</tool_response>", "\\", '"', "'", "\n", "  ", "<b>", "</think>", "%",
    "{{ x }}", "{% if %}", "&amp;", "1867", "<parameter=query>",
]  # fmt: skip
SEARCH = ToolCallsMethod().prompt("?")["tools"]


def text(chance: random.Random, pieces=PIECES) -> str:
    return " ".join(chance.choices(pieces, k=chance.randint(1, 6)))


def conversation(chance: random.Random, family: str, thinks: bool):
    """Yield messages as a server would keep them, and what the policy wrote in each of its own."""
    _, name, _, several = FAMILIES[family]
    for _ in range(chance.randint(1, 4)):
        asked = [
            ("search", {"query": text(chance)})
            if chance.random() < 0.7
            else ("open", {"id": text(chance), "page": chance.randint(1, 9)})
            for _ in range(chance.randint(1, 3) if several else 1)
        ]
        said = chance.choice(["", "I look it up."]) if several else ""
        if thinks:
            said = f"<think>\nI wonder {text(chance, PIECES[:5])}.\n</think>\n\n{said}"
        calls = [{"type": "function", "function": {"name": tool, "arguments": arguments}} for tool, arguments in asked]
        written = "\n".join(FORMATS[name].write(tool, arguments) for tool, arguments in asked)
        between = "\n" if said and not said.endswith("\n\n") else ""
        yield {"role": "assistant", "content": said, "tool_calls": calls}, f"{said}{between}{written}"
        yield from ((({"role": "tool", "name": tool, "content": text(chance)}), None) for tool, _ in asked)


def both_ways(family: str, seed: int, thinks: bool = False, **kwargs):
    """Return the ids of a random conversation: as the rollout lines them up, and as the template renders the whole."""
    chance = random.Random(f"{family}/{seed}")
    codec, tokenizer = codec_of(family, **kwargs), tokenizer_of(family)
    asked = [{"role": "system", "content": "Answer."}, {"role": "user", "content": text(chance, PIECES[:4])}]
    ids = codec.encode_prompt({"messages": asked, "tools": SEARCH})  # type: ignore[typeddict-item]
    messages, results = list(asked), []
    for message, written in conversation(chance, family, thinks):
        if written is not None:
            if results:
                ids += codec.encode(codec.tool_results(results))
                results = []
            ids += [*codec.encode(written), tokenizer.eos_token_id]
        else:
            results.append(message["content"])
        messages.append(message)
    ids += codec.encode(codec.tool_results(results))
    whole = tokenizer.apply_chat_template(messages, tools=SEARCH, add_generation_prompt=True, tokenize=False, **kwargs)
    return ids, codec.encode(whole)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_conversation_lined_up_message_by_message_has_the_ids_of_the_whole_one_as_the_template_renders_it(family):
    for seed in range(200):
        lined_up, whole = both_ways(family, seed)
        assert lined_up == whole, (seed, codec_of(family).decode(lined_up), codec_of(family).decode(whole))


def test_thoughts_stay_where_the_template_keeps_them_behind_the_question():
    for seed in range(200):
        lined_up, whole = both_ways("qwen3", seed, thinks=True)
        assert lined_up == whole, seed


def test_with_thinking_off_the_whole_rendering_drops_the_empty_thoughts_that_the_policy_was_prompted_with_and_the_rollout_keeps_them():
    codec = codec_of("qwen3")
    for seed in range(50):
        lined_up, whole = both_ways("qwen3", seed, enable_thinking=False)
        empty = "<think>\n\n</think>\n\n"
        kept, dropped = codec.decode(lined_up), codec.decode(whole)
        assert kept.count(empty) > dropped.count(empty) == 1  # that of the next message
        assert kept.replace(empty, "") == dropped.replace(empty, "")


@pytest.mark.parametrize("family", FAMILIES)
def test_the_format_of_a_family_is_read_from_its_template(family):
    assert format_of(codec_of(family).template) == FAMILIES[family][1]


@pytest.mark.parametrize("family", ["gemma", "phi", "qwen2-base"])
def test_a_template_without_tools_has_no_format(family):
    assert format_of(tokenizer_like(family).chat_template) is None


@pytest.mark.parametrize("family", FAMILIES)
def test_a_format_that_is_not_the_templates_is_refused_with_the_right_one(family):
    right = FAMILIES[family][1]
    load_method("tool_calls", format=right).check_template(codec_of(family))
    for wrong in sorted(set(FORMATS) - {right}):
        with pytest.raises(ConfigError, match=f"format={right}"):
            load_method("tool_calls", format=wrong).check_template(codec_of(family))


def test_a_template_that_knows_no_tools_is_refused():
    with pytest.raises(ConfigError, match=r"does not show tools to the model.*chatml\.jinja"):
        load_method("tool_calls").check_template(HFCodec(tokenizer_like("qwen2-base")))


def test_a_template_that_leaves_results_out_is_refused():
    codec = codec_of("chatml", chat_template="{% for m in messages if m.role != 'tool' %}{{ m.content }}<|im_end|>{% endfor %}")
    with pytest.raises(ConfigError, match="does not show results of tools"):
        codec.tool_results(["a"])
