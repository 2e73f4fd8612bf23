"""A recipe: its YAML file with those it is built on, its stages, and the overrides from the command line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from research_rl.errors import ConfigError, missing_extra
from research_rl.training.stages import Stage, read_stages

try:
    import yaml
except ModuleNotFoundError as error:
    raise missing_extra("PyYAML", "train") from error

SUPERVISED = "sft_trainer_engine"  # verl's configuration of its SFT trainer, in a recipe's defaults
# stages that shared one of these would mistake each other's checkpoints and trajectories for their own
_DIRECTORY = "--run-dir, in which every stage has its directory"
OF_STAGE = {  # key that a recipe with stages must not set: what to set instead
    "trainer.total_training_steps": "stages.NAME.until.steps=N",
    "research_rl.stage": "the name in the recipe's `stages`",
    "trainer.default_local_dir": _DIRECTORY,
    "research_rl.trajectory_dir": _DIRECTORY,
    "hydra.run.dir": _DIRECTORY,
}


def load_recipe(recipe: Path) -> Mapping[str, Any]:
    """Return the recipe without resolving interpolations: its file, merged over the recipes beside it that its `defaults` name.

    Raises:
        ConfigError: there is no such file, or it is no mapping.
    """
    if not recipe.is_file():
        known = ", ".join(str(path) for path in sorted(Path("recipes").glob("*/*.yaml")))
        raise ConfigError(f"no recipe {recipe}; there are: {known or 'none in ./recipes'}")
    try:
        content = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ConfigError(f"{recipe} is no YAML: {error}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{recipe} is no recipe: expected a mapping with `defaults`")
    under: Mapping[str, Any] = {}
    defaults: list[Any] = []
    for part in content.get("defaults") or []:
        beside = recipe.with_name(f"{part}.yaml")
        if isinstance(part, str) and beside.is_file():
            under = _over(under, load_recipe(beside))
            defaults += under["defaults"]
        else:
            defaults.append(part)
    return {**_over(under, content), "defaults": defaults}


def _over(under: Mapping[str, Any], content: Mapping[str, Any]) -> dict[str, Any]:
    """Return two sections merged as Hydra does it: recursively, and the second one wins."""
    both = {
        key: _over(under[key], value) if isinstance(value, Mapping) and isinstance(under.get(key), Mapping) else value
        for key, value in content.items()
    }
    return {**under, **both}


def defaults_of(content: Mapping[str, Any]) -> list[str]:
    """Return the names in a recipe's `defaults`."""
    return [part for part in content.get("defaults") or [] if isinstance(part, str)]


def is_on_cpu(content: Mapping[str, Any]) -> bool:
    """Return whether a recipe is for a machine without accelerators."""
    return not {"on_cpu", "sft_on_cpu"}.isdisjoint(defaults_of(content))


def stages_of(recipe: Path, overrides: Sequence[str]) -> tuple[list[Stage], list[str]]:
    """Return the stages of a recipe (an empty list if it has none) and the overrides that do not concern them.

    ``stages.NAME.until.steps=5`` changes when a stage ends.

    Raises:
        ConfigError: an override names no stage or sets what every stage sets for itself, or a stage is wrong.
    """
    section = {name: dict(body) for name, body in (load_recipe(recipe).get("stages") or {}).items()}
    others = []
    for override in overrides:
        key, _, value = override.partition("=")
        parts = key.split(".")
        if section and (instead := OF_STAGE.get(override_key(override))):
            raise ConfigError(f"{override}: each stage sets this itself; use instead: {instead}")
        if parts[0] != "stages":
            others.append(override)
            continue
        if len(parts) != 4 or parts[1] not in section or parts[2] != "until":
            raise ConfigError(
                f"{override}: expected stages.NAME.until.KEY=VALUE with NAME one of: {', '.join(section) or 'none'}"
            )
        section[parts[1]]["until"] = {**(section[parts[1]].get("until") or {}), parts[3]: yaml.safe_load(value)}
    return read_stages(section), others


def section_settings(
    content: Mapping[str, Any], overrides: Sequence[str], section: str, names: Sequence[str]
) -> dict[str, Any]:
    """Return some settings of a section from recipe and overrides; None if neither has them."""
    found = {name: (content.get(section) or {}).get(name) for name in names}
    for override in overrides:
        where, _, name = override_key(override).partition(".")
        if where == section and name in found:  # only these are parsed: other overrides need not be YAML
            found[name] = yaml.safe_load(override.partition("=")[2])
    return found


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return a nested mapping as a flat one with dotted keys; sequences become lists, as JSON returns them."""
    found: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping) and value:
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = list(value) if isinstance(value, tuple) else value
    return found


def override_key(override: str) -> str:
    """Return the key of a Hydra override, without a leading `+`, `++` or `~`."""
    return override.partition("=")[0].lstrip("+~")


def hydra_value(value: Any) -> str:
    """Return a value as Hydra's override grammar writes it."""
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{hydra_value(item)}" for key, item in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(hydra_value(item) for item in value) + "]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, str) and not value.startswith("${"):
        from hydra.core.override_parser.types import Quote, QuotedString

        return QuotedString(value, Quote.single).with_quotes()
    return str(value)


def run_directory(recipe: Path) -> Path:
    """Return the default run directory of a recipe."""
    return Path("runs") / f"{recipe.resolve().parent.name}-{recipe.stem}"
