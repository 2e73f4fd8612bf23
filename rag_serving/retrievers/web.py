"""Web search behind the same interface: a Serper-compatible API, optionally the pages themselves, every answer kept on disk.

The API: ``POST url {"q", "num"}`` with the header ``X-API-KEY`` answers ``{"organic": [{"title", "link", "snippet"}]}``.
A passage's id is its address, its contents title, newline, text; its score is 1/rank, for the API gives none.
"""

from __future__ import annotations

import ipaddress
import json
import logging
import socket
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

from rag_serving import MissingExtraError, ServingError
from rag_serving.retrievers.base import Hit, Retriever

log = logging.getLogger("rag_serving")

MAX_PAGE_BYTES = 2_000_000
MAX_REDIRECTS = 3


class WebSearch(Retriever):
    """Asks the web. A failing API fails the search; a page that cannot be read falls back to its snippet."""

    @property
    def size(self) -> None:
        """Nobody knows."""
        return None

    def __init__(
        self,
        url: str,
        key: str,
        cache_dir: Path,
        *,
        fetch_pages: bool = False,
        page_characters: int = 2_000,
        timeout_s: float = 10.0,
        parallel: int = 16,
        cache_days: float = 30.0,
        private_addresses: bool = False,
    ) -> None:
        """`private_addresses` lets pages of one's own network be fetched; off, so that no search result can make the service read them.

        Raises:
            MissingExtraError: a package of the `web` extra is not installed.
        """
        try:
            import diskcache
            import httpx

            if fetch_pages:
                import trafilatura  # noqa: F401
        except ImportError as error:
            raise MissingExtraError(error.name or "diskcache", "web") from error
        self._url, self._fetch, self._page_characters = url, fetch_pages, page_characters
        self._keep_s, self._private = cache_days * 86_400, private_addresses
        self._cache = diskcache.Cache(str(cache_dir))
        self._http = httpx.Client(timeout=timeout_s, headers={"X-API-KEY": key})
        self._pages = httpx.Client(timeout=timeout_s, headers={"User-Agent": "rag-serving"})
        self._threads = ThreadPoolExecutor(parallel, thread_name_prefix="web")

    def warm_up(self) -> None:
        """Nothing: a search costs money."""

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
        for resource in (self._http, self._pages, self._cache):
            resource.close()

    def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        """As `Retriever.search`.

        Raises:
            ServingError: the API did not answer, or not in its format.
        """
        return list(self._threads.map(lambda query: self._search(query, k), queries))

    def _search(self, query: str, k: int) -> list[Hit]:
        key = json.dumps(["search", self._url, query, k])
        kept = self._cache.get(key)
        results = json.loads(kept) if isinstance(kept, str) else self._ask(query, k)
        if kept is None:
            self._cache.set(key, json.dumps(results), expire=self._keep_s)
        hits: dict[str, Hit] = {}
        for rank, result in enumerate(results[:k], 1):
            link = str(result["link"])
            text = (self._page(link) if self._fetch else None) or str(result.get("snippet") or "")
            hits.setdefault(link, Hit(link, f"{result.get('title') or link}\n{text}", 1.0 / rank))
        return list(hits.values())

    def _ask(self, query: str, k: int) -> list[dict]:
        import httpx

        try:
            response = self._http.post(self._url, json={"q": query, "num": k})
            response.raise_for_status()
            results = response.json().get("organic", [])
            return [result for result in results if isinstance(result, dict) and "link" in result]
        except (httpx.HTTPError, ValueError, AttributeError) as error:
            raise ServingError(f"the web search at {self._url} failed: {type(error).__name__}: {error}") from error

    def _page(self, link: str) -> str | None:
        """Return the page's main text, or None where there is none to be had; both are kept."""
        key = json.dumps(["page", link])
        kept = self._cache.get(key)
        if not isinstance(kept, str):
            kept = self._read(link)
            self._cache.set(key, kept, expire=self._keep_s)
        return kept[: self._page_characters] or None

    def _read(self, link: str) -> str:
        import httpx
        import trafilatura

        try:
            for _ in range(MAX_REDIRECTS + 1):
                if not (self._private or _public(link)):
                    log.warning("a search result of a private address was not fetched")
                    return ""
                with self._pages.stream("GET", link) as response:
                    if response.next_request is not None:  # followed by hand: each address is checked
                        link = str(response.next_request.url)
                        continue
                    if response.status_code != 200 or "html" not in response.headers.get("content-type", ""):
                        return ""
                    body = b""
                    for piece in response.iter_bytes():
                        body += piece
                        if len(body) > MAX_PAGE_BYTES:
                            return ""
                    return trafilatura.extract(body.decode(response.encoding or "utf-8", "replace")) or ""
            return ""
        except (httpx.HTTPError, httpx.InvalidURL, LookupError, OSError) as error:
            log.info("a page could not be read: %s", type(error).__name__)
            return ""


def _public(link: str) -> bool:
    """Whether an address is http(s) and every IP behind its host name is public."""
    try:
        parts = urlsplit(link)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            return False
        found = socket.getaddrinfo(parts.hostname, parts.port or (443 if parts.scheme == "https" else 80))
    except (ValueError, OSError):
        return False
    return all(ipaddress.ip_address(address[4][0]).is_global for address in found)
