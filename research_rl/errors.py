"""Every error a user can meet. Each is also a standard-library exception, and survives pickling (Ray, multiprocessing)."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class ConfigError(ValueError):
    """A setting that cannot work: raised before any accelerator is taken."""


class DataError(ValueError):
    """Input data that is malformed; the message names the file and the row."""


class MissingExtraError(ImportError):
    """A package that belongs to an optional extra is not installed."""


class GenerationError(RuntimeError):
    """The engine returned something that is no generation, for example no token at all."""


class RetrievalError(ConnectionError):
    """The retrieval service could not answer. An outage of the infrastructure, never a fault of the policy."""


class WrongServiceError(RetrievalError):
    """The service refuses every query (a wrong token), or what answers is none. Waiting cannot help."""


class QueryFailedError(RetrievalError):
    """The service answers other queries, but refuses this one or fails on it. No outage: asking again changes nothing."""


class JudgeError(ConnectionError):
    """The judge refuses everything, or too many answers got no verdict. A fault of the machinery, never of the policy."""


class NoVerdictError(JudgeError):
    """The judge gave no verdict on one answer, although it was asked again."""


class RunStoppedError(RuntimeError):
    """A training was ended because a part of it died, or because nothing moved any more."""


def missing_extra(package: str, extra: str) -> MissingExtraError:
    """Return the error that says which extra of research-rl brings `package`."""
    return MissingExtraError(
        f"the package {package!r} is not installed; install the extra that brings it: pip install 'research-rl[{extra}]'"
    )


def nearest(name: str, valid: Iterable[str]) -> str:
    """Return the remedy for a name that nobody knows: the valid one that it is most like, if there is one, and all of them."""
    names = sorted(valid)
    found = difflib.get_close_matches(name, names, 1)
    return f"{f'Did you mean {found[0]!r}? ' if found else ''}Valid: {', '.join(names)}"
