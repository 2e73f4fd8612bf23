"""The finding of a check, and the class of checks."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from research_rl.errors import USER_ERRORS, ConfigError

if TYPE_CHECKING:
    from research_rl.verl_plugin.doctor.setup import Setup

Level = Literal["error", "warning", "ok"]


@dataclass(frozen=True)
class Finding:
    """One line of a diagnosis: an error ends a training before it starts, a warning does not.

    `what` is the fact or the requirement, `got` is what was found instead, `do` is the remedy; `kind` is the exception in training.
    """

    level: Level
    name: str
    what: str
    got: str = ""
    do: str = ""
    kind: type[Exception] = ConfigError

    def __str__(self) -> str:
        return f"{self.what}{f'; got {self.got}' if self.got else ''}{f'. {self.do}' if self.do else ''}"

    def to_json(self) -> dict[str, str]:
        """Return it for `--json`."""
        return {"level": self.level, "name": self.name, "what": self.what, "got": self.got, "do": self.do}


def error(what: str, got: object = "", do: str = "", kind: type[Exception] = ConfigError) -> Finding:
    """Return an error; its name is that of the check."""
    return Finding("error", "", what, str(got), do, kind)


def warning(what: str, got: object = "", do: str = "") -> Finding:
    """Return a warning; its name is that of the check."""
    return Finding("warning", "", what, str(got), do)


def of_mistake(mistake: Exception) -> Finding:
    """Return an exception with a message for users as an error; the sentences after the first one are the remedy."""
    what, *do = re.split(r"\. (?=[A-Z])", str(mistake), maxsplit=1)
    return error(what, "", "".join(do), type(mistake))


def ok(what: str) -> Finding:
    """Return a finding that is as it should be, but worth reporting."""
    return Finding("ok", "", what)


@dataclass(frozen=True)
class Check:
    """A check: its name, what is true if it finds nothing, the attributes of a set-up that it needs, and its function."""

    name: str
    sound: str
    needs: tuple[str, ...]
    run: Callable[[Setup], Iterable[Finding]]

    def findings(self, setup: Setup) -> Iterator[Finding]:
        """Yield its findings; if there are none, a single one that all is right."""
        if missing := [need for need in self.needs if getattr(setup, need) is None]:
            yield Finding(
                "warning", self.name, f"not checked: it needs the {' and the '.join(missing)}, which could not be read"
            )
            return
        told = False
        for finding in _guarded(self.run, setup):
            told = True
            yield replace(finding, name=self.name)
        if not told:
            yield Finding("ok", self.name, self.sound)


def check(name: str, sound: str, *needs: str) -> Callable[[Callable[[Setup], Iterable[Finding]]], Check]:
    """Make a `Check` from a function of a set-up; `needs`: attributes of the set-up that must not be None."""
    return lambda run: Check(name, sound, needs, run)


def _guarded(run: Callable[[Setup], Iterable[Finding]], setup: Setup) -> Iterator[Finding]:
    try:
        yield from run(setup)
    except USER_ERRORS as mistake:
        yield of_mistake(mistake)
    except Exception as failure:  # files, models and services can cause any error: the other checks are still made
        yield warning("this check failed itself", f"{type(failure).__name__}: {failure}")
