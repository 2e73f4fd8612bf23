"""Six chat templates with tools over a tokenizer of bytes: five in the manner of model families, written after their public documentation
(GLM's asks for JSON calls as Hermes does), and our own `chatml.jinja`."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from tokenizers.decoders import ByteLevel
from transformers import PreTrainedTokenizerFast

from research_rl.codec import HFCodec

ROOT = Path(__file__).parents[1]
_SYSTEM = r"""
{%- set rest = messages[1:] if messages[0].role == 'system' else messages -%}
{{- '<|im_start|>system\n' + (messages[0].content if messages[0].role == 'system' else '') -}}
{%- if tools -%}
{{- '\n\n# Tools\n' -}}{%- for tool in tools -%}{{- tool | tojson + '\n' -}}{%- endfor -%}{{- 'ASK' -}}
{%- endif -%}
{{- '<|im_end|>\n' -}}"""
_RESULTS = r"""
{%- if m.role == 'tool' -%}
{{- '<|im_start|>user' if loop.first or loop.previtem.role != 'tool' else '' -}}
{{- '\n<tool_response>\n' + m.content + '\n</tool_response>' -}}
{{- '<|im_end|>\n' if loop.last or loop.nextitem.role != 'tool' else '' -}}
{%- else -%}
{%- set content = m.content or '' -%}"""
_JSON_CALLS = r"""
{%- for call in m.tool_calls or [] -%}
{{- '\n' if (content and not content.endswith('\n\n')) or not loop.first else '' -}}
{{- '<tool_call>\n{"name": "' + call.function.name + '", "arguments": ' + call.function.arguments | tojson + '}\n</tool_call>' -}}
{%- endfor -%}"""
_XML_CALLS = r"""
{%- for call in m.tool_calls or [] -%}
{{- ('\n' if content or not loop.first else '') + '<tool_call>\n<function=' + call.function.name + '>\n' -}}
{%- for name, value in call.function.arguments.items() -%}
{{- '<parameter=' + name + '>\n' + (value if value is string else value | tojson) + '\n</parameter>\n' -}}
{%- endfor -%}
{{- '</function>\n</tool_call>' -}}
{%- endfor -%}"""
_JSON_ASK = r'<tool_call>\n{"name": …, "arguments": …}\n</tool_call>'
_XML_ASK = r"<tool_call>\n<function=…>\n<parameter=…>\n…\n</parameter>\n</function>\n</tool_call>"
_PROMPT = r"{{- '<|im_start|>assistant\n' if add_generation_prompt else '' -}}"
_OPEN, _CLOSE = r"{{- '<|im_start|>' + m.role + '\n' + content -}}", r"{{- '<|im_end|>\n' -}}{%- endif -%}{%- endfor -%}"
# a thought stands in the conversation only behind the user's last message, the last message always has the block
_THOUGHT = r"""
{{- '<|im_start|>' + m.role + '\n' -}}
{%- if m.role == 'assistant' -%}
{%- set thought = content.split('</think>')[0].split('<think>')[-1].strip('\n') if '</think>' in content else '' -%}
{%- set content = content.split('</think>')[-1].lstrip('\n') -%}
{{- '<think>\n' + thought + '\n</think>\n\n' if loop.index0 > ns.asked and (loop.last or thought) else '' -}}
{{- content -}}CALLS
{%- else -%}
{{- content -}}
{%- endif -%}""".replace("CALLS", _JSON_CALLS)
_ASKED = r"""
{%- set ns = namespace(asked=-1) -%}
{%- for m in rest -%}{%- if m.role == 'user' -%}{%- set ns.asked = loop.index0 -%}{%- endif -%}{%- endfor -%}"""
_NO_THINKING = (
    r"{{- '<think>\n\n</think>\n\n' if add_generation_prompt and enable_thinking is defined and not enable_thinking else '' -}}"
)


def _chatml(ask: str, calls: str) -> str:
    return _SYSTEM.replace("ASK", ask) + "{%- for m in rest -%}" + _RESULTS + _OPEN + calls + _CLOSE + _PROMPT


_QWEN3 = (
    _SYSTEM.replace("ASK", _JSON_ASK) + _ASKED + "{%- for m in rest -%}" + _RESULTS + _THOUGHT + _CLOSE + _PROMPT + _NO_THINKING
)
_LLAMA3 = r"""
{{- bos_token + '<|start_header_id|>system<|end_header_id|>\n\n' + ('Environment: ipython\n' if tools else '') -}}
{{- (messages[0].content if messages[0].role == 'system' else '') + '<|eot_id|>' -}}
{%- for m in messages if m.role != 'system' -%}
{{- '<|start_header_id|>' + ('ipython' if m.role == 'tool' else m.role) + '<|end_header_id|>\n\n' -}}
{%- if m.role == 'tool' -%}{{- m.content | tojson -}}
{%- elif m.tool_calls -%}
{%- set call = m.tool_calls[0].function -%}
{{- '{"name": "' + call.name + '", "parameters": ' + call.arguments | tojson + '}' -}}
{%- else -%}
{%- if tools and loop.first -%}{{- 'Functions:\n' -}}{%- for tool in tools -%}{{- tool | tojson + '\n' -}}{%- endfor -%}{%- endif -%}
{{- m.content -}}
{%- endif -%}
{{- '<|eot_id|>' -}}
{%- endfor -%}
{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' if add_generation_prompt else '' -}}"""
# here the token that opens the next message ends the one before it
_GLM = r"""
{{- '[gMASK]<sop>' -}}
{%- if tools -%}
{{- '<|system|>\n' -}}{%- for tool in tools -%}{{- tool | tojson + '\n' -}}{%- endfor -%}{{- 'ASK' -}}
{%- endif -%}
{%- for m in messages -%}
{%- if m.role == 'tool' -%}
{{- '<|observation|>' if loop.first or loop.previtem.role != 'tool' else '' -}}
{{- '\n<tool_response>\n' + m.content + '\n</tool_response>' -}}
{%- else -%}
{%- set content = m.content or '' -%}
{{- '<|' + m.role + '|>\n' + content -}}CALLS
{%- endif -%}
{%- endfor -%}
{{- '<|assistant|>\n' if add_generation_prompt else '' -}}""".replace("CALLS", _JSON_CALLS).replace("ASK", _JSON_ASK)

# family: template, format, the token that ends a message that calls tools, whether a message may hold several calls and words beside them
FAMILIES = {
    "qwen2.5": (_chatml(_JSON_ASK, _JSON_CALLS), "hermes", "<|im_end|>", True),
    "qwen3": (_QWEN3, "hermes", "<|im_end|>", True),
    "qwen3-coder": (_chatml(_XML_ASK, _XML_CALLS), "qwen_coder", "<|im_end|>", True),
    "llama3": (_LLAMA3, "llama3", "<|eot_id|>", False),
    "glm": (_GLM, "hermes", "<|observation|>", True),
    "chatml": ((ROOT / "research_rl" / "tools" / "chatml.jinja").read_text(encoding="utf-8"), "hermes", "<|im_end|>", True),
}
SPECIAL = [
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>",
    "<|python_tag|>", "[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>",
]  # fmt: skip


@cache
def tokenizer_of(family: str) -> Any:
    """Return a tokenizer with a family's chat template."""
    tokenizer = Tokenizer(
        models.BPE(vocab={c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, merges=[])
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    template, _, end, _ = FAMILIES[family]
    loaded = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=end, bos_token="<|begin_of_text|>")
    loaded.chat_template = template
    return loaded


def codec_of(family: str, **kwargs: Any) -> HFCodec:
    """Return the codec of a family; `kwargs` go to the chat template."""
    return HFCodec(tokenizer_of(family), chat_template_kwargs=kwargs)
