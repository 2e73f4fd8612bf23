"""The folder of shared configuration is on Hydra's search path, wherever verl is.

Hydra lets the recipe that is run name search paths (`hydra.searchpath`), and refuses one that another recipe is built on if it names any.
"""

from __future__ import annotations

from typing import Any

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.plugins import Plugins
from hydra.plugins.search_path_plugin import SearchPathPlugin


class SharedConfig(SearchPathPlugin):
    """Appends `research_rl/config`: what a recipe's own folder or verl has of the same name comes first."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Append the folder."""
        search_path.append("research_rl", "pkg://research_rl.config")


def install(_: Any) -> None:
    """Make it known (hooked to the import of `hydra`)."""
    Plugins.instance().register(SharedConfig)
