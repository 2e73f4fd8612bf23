"""Whether FlashRAG's prompts go through a model's chat template, or are plain text.

FlashRAG decides by the model's path (does it contain "chat" or "instruct"?), and silently falls back to plain text if a template fails.
Here the tokenizer decides, or the user.
"""

from __future__ import annotations

import sys
from typing import Any

from research_rl.errors import ConfigError, missing_extra

CHOICES = ("auto", "on", "off")
PLAIN = frozenset({"ircot"})  # few-shot text that ends in "Thought:"; FlashRAG uses no chat template for it either


def uses_chat_template(choice: str, baseline: str, tokenizer: Any) -> bool:
    """Return whether a baseline's prompts go through the chat template; `choice` is one of `CHOICES`.

    Raises:
        ConfigError: a chat template is to be used, but the tokenizer has none, or one that does not show a question.
    """
    has = bool(getattr(tokenizer, "chat_template", None))
    if choice == "off" or (choice == "auto" and (not has or baseline in PLAIN)):
        return False
    if not has:
        raise ConfigError(f"--chat-template on: the tokenizer at {tokenizer.name_or_path} has no chat template")
    if not _shows(tokenizer, "user"):
        raise ConfigError(
            f"the chat template of {tokenizer.name_or_path} does not take a user's question: use --chat-template off"
        )
    return True


def set_form(template: Any, tokenizer: Any, chat: bool) -> None:
    """Make a FlashRAG `PromptTemplate` render through `tokenizer`'s chat template (`chat`) or as plain text, without cutting.

    If the chat template takes no system message (Gemma's), the system text is put before the user's.
    """
    template.tokenizer, template.is_chat, template.enable_chat = tokenizer, chat, chat
    template.max_input_len = sys.maxsize  # FlashRAG's own cutting loses special tokens, so the generator does it
    if chat and template.system_prompt and not _shows(tokenizer, "system"):
        template.user_prompt = f"{template.system_prompt}\n\n{template.user_prompt}"
        template.system_prompt = ""


def _shows(tokenizer: Any, role: str) -> bool:
    """Return whether the chat template shows the text of a message of `role`."""
    try:
        from jinja2 import TemplateError
    except ModuleNotFoundError as error:
        raise missing_extra("jinja2", "eval") from error
    messages = [{"role": role, "content": "a text to be found"}]
    if role != "user":
        messages.append({"role": "user", "content": "a question"})
    try:
        return messages[0]["content"] in str(
            tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        )
    except TemplateError:
        return False
