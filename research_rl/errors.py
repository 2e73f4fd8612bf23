"""Every error a user can meet. Each is also a standard-library exception, and survives pickling (Ray, multiprocessing)."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class ConfigError(ValueError):
    """A setting that cannot work; raised before any accelerator is used."""


class DataError(ValueError):
    """Input data that is malformed; the message names the file and the row."""


class MissingExtraError(ImportError):
    """A package that belongs to an optional extra is not installed."""


class GenerationError(RuntimeError):
    """The engine returned something that is not a generation, for example no token at all."""


class RetrievalError(ConnectionError):
    """The retrieval service could not answer. An outage of the infrastructure, never a fault of the policy."""


class WrongServiceError(RetrievalError):
    """The service refuses every query (a wrong token), or the server is no retrieval service. Waiting cannot help."""


class QueryFailedError(RetrievalError):
    """The service answers other queries, but refuses this one or fails on it. This is no outage: asking again changes nothing."""


class JudgeError(ConnectionError):
    """The judge refuses every request, or too many answers got no verdict. A fault of the infrastructure, never of the policy."""


class NoVerdictError(JudgeError):
    """The judge gave no verdict on one answer, although it was asked again."""


class RunStoppedError(RuntimeError):
    """A training was ended because one of its processes died, or because it made no progress any more."""


# a user's mistakes and a service's failures: commands print their message without a traceback
USER_ERRORS = (
    ConfigError,
    DataError,
    GenerationError,
    JudgeError,
    MissingExtraError,
    NoVerdictError,
    QueryFailedError,
    RetrievalError,
    RunStoppedError,
    WrongServiceError,
)


def missing_extra(package: str, extra: str) -> MissingExtraError:
    """Return the error that says which extra of research-rl brings `package`."""
    return MissingExtraError(
        f"the package {package!r} is not installed; install the extra that brings it: pip install 'research-rl[{extra}]'"
    )


def nearest(name: str, valid: Iterable[str]) -> str:
    """Return the hint for an unknown name: the most similar valid name, if there is one, and all valid names."""
    names = sorted(valid)
    found = difflib.get_close_matches(name, names, 1)
    return f"{f'Did you mean {found[0]!r}? ' if found else ''}Valid: {', '.join(names)}"
