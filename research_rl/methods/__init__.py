"""The methods, found by their names (the files here) or by dotted paths."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from research_rl.errors import ConfigError, nearest
from research_rl.methods.base import Method
from research_rl.methods.templates import prompt_pieces
from research_rl.neutralize import breakable


def load_method(path: str, **options: Any) -> Method:
    """Make a method from its name (a file of this package: ``r1_searcher``) or its dotted path (``my_package.MyMethod``).

    Raises:
        ConfigError: the name or path leads to no `Method`, an option is unknown or has a wrong value, or the method is incomplete
            (see `check_method`).
    """
    kind = _kind(path)
    if missing := sorted(kind.__abstractmethods__):
        raise ConfigError(f"the method {path} does not define: {', '.join(missing)}")
    try:
        method = kind(**options)
    except TypeError as error:
        valid = list(inspect.signature(kind).parameters)
        wrong = next((name for name in options if name not in valid), "")
        raise ConfigError(f"{path} does not take these method options: {options} ({error}). {nearest(wrong, valid)}") from error
    return check_method(method)


def method_defaults(path: str) -> dict[str, Any]:
    """Return the values that a method's options have if they are not given, as far as JSON can hold them.

    Raises:
        ConfigError: the name or path leads to no `Method`.
    """
    found = {}
    for name, option in inspect.signature(_kind(path)).parameters.items():
        if option.default is not option.empty:
            with contextlib.suppress(TypeError, ValueError):
                found[name] = json.loads(json.dumps(option.default))
    return found


def check_method(method: Method) -> Method:
    """Check that a method has the attributes that the rollout, the manifest and `read` rely on, and return it.

    Raises:
        ConfigError: an attribute is missing or of another type, or a tag is not `breakable`.
    """
    needed: dict[str, tuple[str, Callable[[Any], bool]]] = {
        "name": ("a text", lambda value: isinstance(value, str) and bool(value)),
        "stop": ("a tuple of texts", _texts),
        "tags": ("a tuple of texts", _texts),
        "observed": ("a compiled regular expression", lambda value: isinstance(value, re.Pattern)),
    }
    name = f"{type(method).__module__}.{type(method).__qualname__}"
    for attribute, (what, right) in needed.items():
        if not right(value := getattr(method, attribute, None)):
            raise ConfigError(f"the method {name} needs the attribute `{attribute}`, {what}; got {value!r}")
    if stuck := [tag for tag in method.tags if not breakable(tag)]:
        raise ConfigError(
            f"the method {name} has tags that a space after the first character does not break, so that a passage could contain them: "
            f"{stuck}. A tag needs two characters or more; the first must not be white space, and the others not spaces alone"
        )
    return method


def _texts(value: object) -> bool:
    return isinstance(value, (tuple, list)) and all(isinstance(text, str) and text for text in value)


def with_prompt_texts(method: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return a method's options with each prompt file replaced by its text (`prompt_file` by `prompt`), for use on other machines.

    Raises:
        ConfigError: see `load_method` and `load_template`.
    """
    valid = inspect.signature(_kind(method)).parameters
    found: dict[str, Any] = {}
    for name, value in options.items():
        text = name.removesuffix("_file")
        if name.endswith("prompt_file") and value and text in valid:
            found[text] = prompt_pieces(value)
        else:
            found[name] = value
    return found


def method_names() -> list[str]:
    """Return the names of the methods of this package: its files."""
    return sorted(file.stem for file in Path(__file__).parent.glob("*.py") if file.stem not in ("__init__", "base"))


def _kind(path: str) -> type[Method]:
    return _named(path) if "." not in path else _at(path)


def _named(name: str) -> type[Method]:
    if name not in method_names():
        raise ConfigError(
            f"no method is called {name!r}; valid: {', '.join(method_names())}, or the dotted path of a Method class"
        )
    module = importlib.import_module(f"research_rl.methods.{name}")
    return next(
        kind
        for kind in vars(module).values()
        if isinstance(kind, type) and issubclass(kind, Method) and kind.__module__ == module.__name__
    )


def _at(path: str) -> type[Method]:
    module, _, attribute = path.rpartition(".")
    try:
        kind = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"research_rl.method={path!r} cannot be imported ({error}); give the dotted path of a Method class"
        ) from error
    if not (isinstance(kind, type) and issubclass(kind, Method)):
        raise ConfigError(f"research_rl.method={path!r} is not a subclass of research_rl.methods.base.Method")
    return kind
