"""The client of the retrieval service: asynchronous, with one deadline per call and bounded retries.

In an outage (connection errors, time-outs, and the statuses in `outages.RETRIED_STATUS`), requests are retried until the deadline; those to
a service that was never there, only for a short time. After that, and for any other refusal, a `RetrievalError` is raised. No error is
ever turned into an empty result. A response in another format (a proxy's page, a truncated list) counts as an outage if the service has
answered before, and as the wrong service if it has not.

The response header `X-Index-Id` names the index that was searched. If it changes, the run ends: half of it would have learnt from one
corpus, and half from another.

Searches of many rollouts share requests (`gathering`), but only on the first attempt, and only after the service has answered once.
Retries are sent one by one.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx

from research_rl.errors import ConfigError, QueryFailedError, WrongServiceError
from research_rl.gathering import Gatherer
from research_rl.limits import check_number
from research_rl.outages import (
    FOREIGN,
    RETRIED_STATUS,
    HttpClient,
    Persistence,
    UnavailableError,
    UnreachableError,
    whole_pairs,
)
from research_rl.types import OpenedPage, Passage

_MOST_PAGES = 1_000_000
_MOST_BYTES = 64_000_000  # of an answer: 512 queries with 100 passages of 1,000 characters are 51 MB
_INDEX_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_WRONG_SERVICE = frozenset({401, 403, 404, 405})  # every query would be refused: a wrong token, or another service


@dataclass(frozen=True)
class RetrievalSettings:
    """Where the service is and how long to wait for it (seconds)."""

    url: str
    deadline_s: float = 180.0  # for one search, retries included; after it there is one more attempt, of at most timeout_s
    timeout_s: float = 30.0  # for one HTTP request
    # while no connection was ever made there is, most likely, no service: a person at a terminal should not wait for it. One that was there
    # and goes away is waited for until the deadline. None: so is one that was never there
    unreachable_s: float | None = 10.0
    max_attempts: int = 1_000
    max_connections: int = 128
    # bearer token of a service that wants one; None: RETRIEVAL_TOKEN of the environment, where no logged configuration shows it
    token: str | None = field(default=None, repr=False)
    # the name of an index, if the service has several (`rag-serving serve --index NAME=DIR`); None: its default
    index: str | None = None
    index_id: str | None = None  # the index that must answer; None: the one that answers first
    max_query_characters: int = 2_000  # longer queries are cut, so that an endless query does not get the request refused

    def __post_init__(self) -> None:
        """Raise ConfigError for values that cannot work."""
        if not self.url.startswith(("http://", "https://")):
            raise ConfigError(f"the retrieval URL must start with http:// or https://, got {self.url!r}")
        if self.index is not None and not (isinstance(self.index, str) and _INDEX_NAME.fullmatch(self.index)):
            raise ConfigError(
                f"retrieval.index must be the name of an index (letters, digits, '.', '_', '-'; a number in quotes), got {self.index!r}"
            )
        for name in ("deadline_s", "timeout_s"):
            check_number(f"retrieval.{name}", getattr(self, name), "a positive number of seconds", above=0)
        for name in ("max_attempts", "max_connections", "max_query_characters"):
            check_number(f"retrieval.{name}", getattr(self, name), "a positive integer", low=1, whole=True)
        check_number(
            "retrieval.unreachable_s", self.unreachable_s, "a positive number of seconds, or null", above=0, or_null=True
        )

    @property
    def address(self) -> str:
        """The URL that requests for the index go to."""
        return self.url.rstrip("/") + (f"/indexes/{self.index}" if self.index else "")


class RetrievalClient:
    """Speaks ReSearch's wire format (`POST /batch_search`). Make one per process: its connections are shared by all rollouts."""

    def __init__(self, settings: RetrievalSettings, transport: httpx.AsyncBaseTransport | None = None) -> None:
        """`transport` replaces the network in tests."""
        self.settings = settings
        token = settings.token or os.environ.get("RETRIEVAL_TOKEN")
        self._http = HttpClient(
            _MOST_BYTES,
            base_url=settings.address,
            timeout=httpx.Timeout(
                settings.timeout_s, connect=min(settings.timeout_s, settings.unreachable_s or settings.timeout_s)
            ),
            headers={"Authorization": f"Bearer {token}"} if token else None,
            limits=httpx.Limits(max_connections=settings.max_connections, max_keepalive_connections=settings.max_connections),
            transport=transport,
        )
        self._gatherer = Gatherer(self._post)
        self._index_id = settings.index_id
        self._persistence = Persistence(
            f"the retrieval service at {settings.address}",
            f"Is it running? Try: curl {settings.address}/health",
            settings.deadline_s,
            settings.timeout_s,
            settings.max_attempts,
            settings.unreachable_s,
        )

    @property
    def outage_s(self) -> float:
        """See `Persistence.outage_s`."""
        return self._persistence.outage_s

    async def search(self, queries: Sequence[str], top_k: int) -> list[list[Passage]]:
        """Return, per query, at most `top_k` passages, best first.

        Raises:
            QueryFailedError: the service refuses these queries, or fails on them while it answers others.
            WrongServiceError: it refuses every query, or answers in another format.
            RetrievalError: no answer before the deadline: an outage. Each message names the URL.
        """
        cut = [query[: self.settings.max_query_characters] for query in queries]

        async def ask(first: bool) -> list[list[Passage]]:
            send = self._gatherer.search if first and self._persistence.answered_before else self._gatherer.alone
            return await send(cut, top_k)

        return await self._persistence.persist(ask, f"{len(queries)} queries", f"the first query: {cut[0][:200]!r}")

    async def open(self, passage_id: str, page: int | None = None) -> OpenedPage | None:
        """Return a page of the document with a passage (default: the passage's page); None if there is no such passage or page.

        Raises:
            as `search`; also WrongServiceError if the service has no documents to open.
        """
        # such an id or page was never shown, and the service might refuse the request
        if len(passage_id) > self.settings.max_query_characters or not 0 < (page or 1) < _MOST_PAGES:
            return None
        body = {"id": passage_id, "page": page}
        return await self._persistence.persist(
            lambda first: self._post_open(body), "a document to open", f"the passage: {passage_id[:200]!r}"
        )

    async def _post(self, queries: list[str], top_k: int) -> list[list[Passage]]:
        body = {"query": queries, "top_n": top_k, "return_score": True}
        response = await self._send("/batch_search", body)
        if response.status_code == 413 and len(queries) > 1:  # the service takes fewer queries per request
            self._gatherer.most = max(1, min(self._gatherer.most, len(queries) // 2))
        if response.status_code != 200:
            raise self._refused(response, f"{len(queries)} queries")
        self._check_index(response.headers.get("x-index-id"))
        return self._decode(response, len(queries), top_k)

    async def _post_open(self, body: dict[str, Any]) -> OpenedPage | None:
        response = await self._send("/v1/open", body)
        try:
            told = response.json()
            if response.status_code in (400, 404) and told["reason"] in ("passage", "page"):
                return None
            if response.status_code != 200:
                raise self._refused(response, "a document to open")
            self._check_index(response.headers.get("x-index-id"))
            passages = [_passage(one) for one in told["passages"]]
            return OpenedPage(passages, int(told["page"]), int(told["pages"]))
        except FOREIGN as error:
            if response.status_code != 200:
                raise self._refused(response, "a document to open") from None
            raise self._foreign("/v1/open", f"something that is not its format: {response.text[:200]!r} ({error!r})") from error

    async def _send(self, path: str, body: dict[str, Any]) -> httpx.Response:
        try:
            response = await self._http.post(path, json=body)
        except httpx.RequestError as error:  # a garbled compression, too
            kind = UnreachableError if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout) else UnavailableError
            raise kind(f"{type(error).__name__}: {error}") from error
        if response.status_code in RETRIED_STATUS:
            raise UnavailableError(f"HTTP {response.status_code}")
        return response

    def _refused(self, response: httpx.Response, what: str) -> Exception:
        """Return the error of a refusal."""
        status = response.status_code
        wrong_query = 400 <= status < 500 and status not in _WRONG_SERVICE
        return (QueryFailedError if wrong_query else WrongServiceError)(
            f"{response.url} refused {what} with HTTP {status}: {response.text[:300]}"
        )

    def _check_index(self, told: str | None) -> None:
        if told is None:  # the service is not rag-serving
            return
        if self._index_id not in (None, told):
            raise WrongServiceError(
                f"the service at {self.settings.address} now searches the index {told}, but this run began with {self._index_id}: "
                f"serve that one again, or continue with the new one by research_rl.retrieval.index_id={told}"
            )
        self._index_id = told

    def _decode(self, response: httpx.Response, expected: int, top_k: int) -> list[list[Passage]]:
        try:
            documents, scores = response.json()
            results = [
                [_passage(doc, float(score)) for doc, score in zip(row, row_scores, strict=True)][
                    :top_k
                ]  # some services have a k of their own
                for row, row_scores in zip(documents, scores, strict=True)
            ]
        except FOREIGN as error:
            told = f"something that is not ReSearch's format: {response.text[:200]!r} ({error!r})"
            raise self._foreign("/batch_search", told) from error
        if len(results) != expected:
            raise self._foreign("/batch_search", f"{len(results)} results to {expected} queries")
        return results

    def _foreign(self, path: str, told: str) -> Exception:
        """Return the error of a response in another format."""
        kind = UnavailableError if self._persistence.answered_before else WrongServiceError
        return kind(f"{self.settings.address}{path} answered {told}")

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> RetrievalClient:
        return self

    async def __aexit__(self, *_: Any) -> None:
        with contextlib.suppress(httpx.HTTPError):
            await self.close()


def _passage(found: Any, score: float | None = None) -> Passage:
    """Return a passage of an answer. Half a surrogate pair, which JSON can carry and no tokenizer encodes, is replaced.

    Raises:
        TypeError, ValueError, KeyError: it is none.
    """
    if not isinstance(found["contents"], str):
        raise TypeError(f"contents must be a text, got {type(found['contents']).__name__}")
    return Passage(whole_pairs(str(found["id"])), whole_pairs(found["contents"]), score)
