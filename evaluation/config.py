"""Options from a YAML file: ``--config FILE`` sets the options that are not on the command line."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from research_rl.errors import ConfigError, missing_extra


def defaults_from(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> None:
    """Set the parser's defaults from the file that ``--config`` in `arguments` names, if any. Keys are the names of options.

    Raises:
        ConfigError: the file is missing or not a mapping, or a key is not an option.
        MissingExtraError: PyYAML is not installed.
    """
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    finder.add_argument("--config", type=Path)
    path = finder.parse_known_args(list(arguments))[0].config
    if path is None:
        return
    try:
        import yaml
    except ModuleNotFoundError as error:
        raise missing_extra("PyYAML", "eval") from error
    if not path.is_file():
        raise ConfigError(f"no configuration at {path}")
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is no YAML: {error}") from None
    actions = {action.dest: action for action in parser._actions if action.dest not in ("help", "config")}
    given = (
        {str(key).replace("-", "_"): value for key, value in found.items()} if isinstance(found, dict) else {str(found): None}
    )
    if unknown := sorted(set(given) - set(actions)):
        raise ConfigError(f"{path}: unknown keys {unknown}; valid: {', '.join(sorted(actions))}")
    for name, value in given.items():
        action = actions[name]
        action.required = False
        convert: Any = action.type if callable(action.type) and isinstance(value, str) else lambda given: given
        try:
            parser.set_defaults(**{name: convert(value)})
        except (TypeError, ValueError) as error:
            raise ConfigError(f"{path}: {name}: {error}") from None
