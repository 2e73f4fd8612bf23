"""Puts the folder of shared configuration on Hydra's search path, wherever verl is.

A recipe cannot do this itself: Hydra accepts `hydra.searchpath` in the recipe that is run, but refuses it in recipes that it builds on.
"""

from __future__ import annotations

from typing import Any

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.plugins import Plugins
from hydra.plugins.search_path_plugin import SearchPathPlugin


class SharedConfig(SearchPathPlugin):
    """Appends `research_rl/config`, so that files of the same name in a recipe's own folder or in verl take precedence."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Append the folder."""
        search_path.append("research_rl", "pkg://research_rl.config")


def install(_: Any) -> None:
    """Register the plugin in Hydra (hooked to the import of `hydra`)."""
    Plugins.instance().register(SharedConfig)
