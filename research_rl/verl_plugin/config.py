"""Reads the plugin's sections of a verl configuration."""

from __future__ import annotations

from typing import Any

from omegaconf import OmegaConf

from research_rl.errors import ConfigError
from research_rl.training.settings import Settings


def settings_of(config: Any) -> Settings:
    """Return the checked `research_rl:` section of a verl configuration.

    Raises:
        ConfigError: it is missing or wrong.
    """
    if "research_rl" not in config:
        raise ConfigError("the configuration has no research_rl: section; start from a recipe in recipes/")
    section: Any = OmegaConf.to_container(config.research_rl, resolve=True)
    return Settings.from_mapping(section)


def chat_template_kwargs(data: Any) -> dict[str, Any]:
    """Return the arguments of the chat template from verl's `data:` section (`apply_chat_template_kwargs`)."""
    found = data.get("apply_chat_template_kwargs") or {}
    kwargs: Any = OmegaConf.to_container(found, resolve=True) if OmegaConf.is_config(found) else dict(found)
    return kwargs
