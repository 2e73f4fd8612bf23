"""Web search behind the same interface: a Serper-compatible API, optionally the pages themselves, every answer kept on disk.

The API: ``POST url {"q", "num"}`` with the header ``X-API-KEY`` answers ``{"organic": [{"title", "link", "snippet"}]}``.
A passage's id is its address, its contents title, newline, text; its score is 1/rank, for the API gives none.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from rag_serving import MissingExtraError, ServingError
from rag_serving.retrievers.base import Hit, Retriever, shown

RETRY_S = 300.0  # an empty answer, or a page that could not be read, is asked for again after this


class WebSearch(Retriever):
    """Asks the web. A failing API fails the search; a page that cannot be read falls back to its snippet."""

    nested_to = 0  # the API is told how many are wanted, and answers as it likes

    @property
    def size(self) -> None:
        """None: the size of the web is not known."""
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
        """`timeout_s`: how long the API may be silent, and how long a page may take in all.

        `private_addresses` lets pages of one's own network be fetched; off, so that no search result can make the service read them.

        Raises:
            MissingExtraError: a package of the `web` extra is not installed.
        """
        try:
            import diskcache
            import httpx

            from rag_serving.retrievers.pages import PageReader

            if fetch_pages:
                import trafilatura  # noqa: F401 - pages are read with it
        except ImportError as error:
            raise MissingExtraError(error.name or "diskcache", "web") from error
        self._url, self._page_characters, self._keep_s = url, page_characters, cache_days * 86_400
        self._cache = diskcache.Cache(str(cache_dir))
        self._http = httpx.Client(timeout=timeout_s, headers={"X-API-KEY": key})
        self._pages = PageReader(timeout_s, private_addresses) if fetch_pages else None
        self._threads = ThreadPoolExecutor(parallel, thread_name_prefix="web")
        self._readers = ThreadPoolExecutor(parallel, thread_name_prefix="pages")

    def warm_up(self) -> None:
        """Do nothing: a search costs money."""

    def close(self) -> None:
        for threads in (self._threads, self._readers):
            threads.shutdown(wait=False, cancel_futures=True)
        for resource in (self._http, self._cache):
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
            self._cache.set(key, json.dumps(results), expire=self._keep_s if results else RETRY_S)
        links = [str(result["link"]) for result in results[:k]]
        wanted = list(dict.fromkeys(links)) if self._pages is not None else []
        pages = dict(zip(wanted, self._readers.map(self._page, wanted), strict=True))
        hits: dict[str, Hit] = {}
        for rank, (link, result) in enumerate(zip(links, results, strict=False), 1):
            text = pages.get(link) or str(result.get("snippet") or "")
            hits.setdefault(link, Hit(link, f"{result.get('title') or link}\n{text}", 1.0 / rank))
        return list(hits.values())

    def _ask(self, query: str, k: int) -> list[dict]:
        import httpx

        try:
            response = self._http.post(self._url, json={"q": query, "num": k})
            response.raise_for_status()
            results = response.json().get("organic", [])
            return [result for result in results if isinstance(result, dict) and "link" in result]
        except (httpx.HTTPError, httpx.InvalidURL, ValueError, AttributeError, TypeError) as error:
            # neither the address nor what the error says: both may hold a key, and the message goes to the client
            status = getattr(getattr(error, "response", None), "status_code", None)
            told = f"HTTP {status}" if status else type(error).__name__
            raise ServingError(f"the web search at {shown(self._url)} failed: {told}; check web_url and web_key") from None

    def _page(self, link: str) -> str:
        """Return the page's main text; empty where there is none to be had, which is asked again after `RETRY_S`."""
        assert self._pages is not None
        key, unread = json.dumps(["page", link]), json.dumps(["unread", link])
        kept = self._cache.get(key)
        if not (isinstance(kept, str) and kept):
            kept = "" if unread in self._cache else self._pages.read(link)
            self._cache.set(key if kept else unread, kept, expire=self._keep_s if kept else RETRY_S)
        return kept[: self._page_characters]
