"""The names of a service's indexes, and the addresses under which it answers for one of them."""

from __future__ import annotations

import re

from rag_serving import ServingError

NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
_NAMED = re.compile(rf"/indexes/({NAME})$")


def address_of(url: str, index: str | None) -> str:
    """Return the address of one index of the service at `url`; None: of its default index.

    Raises:
        ServingError: no index can have this name, or the address names one already.
    """
    if index is None:
        return url
    if not re.fullmatch(NAME, index):
        raise ServingError(
            f"no index of a service is called {index[:100]!r}: letters, digits, '.', '_' and '-', 64 at most; "
            f"GET {url.rstrip('/')}/readyz tells the names"
        )
    url = url.rstrip("/")
    if named := _NAMED.search(url):
        raise ServingError(f"--url names the index {named[1]!r} already, and --index {index!r}; give only one of the two")
    return f"{url}/indexes/{index}"
