"""What a search returns of a passage, such as the part that holds most of the query's words; and which passages it leaves out."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from typing import Any

import orjson

from rag_serving import wire_v1
from rag_serving.lookup import bare, document_of, title_of
from rag_serving.retrievers.base import Hit

SNIPPET_CHARACTERS = 300
_WORD = re.compile(r"\w+")


def snippet(query: str, contents: str, characters: int = SNIPPET_CHARACTERS) -> str:
    """Return at most `characters` of a passage's text (without its title): the first part with the most distinct words of the query."""
    text = contents.partition("\n")[2].strip() or contents.strip()
    if len(text) <= characters:
        return text
    asked = {word.casefold() for word in _WORD.findall(query)}
    # short words are mostly of grammar; they count where there are no others
    asked = {word for word in asked if len(word) > 3} or asked
    found = [match for match in _WORD.finditer(text) if match[0].casefold() in asked and len(match[0]) <= characters]
    best, begin, end, first = 0, 0, 0, 0
    inside: Counter[str] = Counter()
    for match in found:
        inside[match[0].casefold()] += 1
        while match.end() - found[first].start() > characters:
            inside -= Counter([found[first][0].casefold()])
            first += 1
        if len(inside) > best:
            best, begin, end = len(inside), found[first].start(), match.end()
    start = min(max(0, begin - (characters - (end - begin)) // 2), len(text) - characters)
    return _whole_words(text, start, start + characters, begin, end)


def _whole_words(text: str, start: int, stop: int, begin: int, end: int) -> str:
    """Return text[start:stop] without the words cut at its ends, as long as begin to end stays in it."""
    if start and (space := text.find(" ", start - 1, begin)) >= 0:
        start = space + 1
    if stop < len(text) and (space := text.rfind(" ", end, stop + 1)) >= 0:
        stop = space
    return text[start:stop]


class Exclusion:
    """What a search leaves out: passages by title, by id, by their document's id, or by how their id begins (`page*`)."""

    def __init__(self, titles: Sequence[str], ids: Sequence[str]) -> None:
        self._titles = {bare(title) for title in titles}
        self._ids = {name for name in ids if not name.endswith("*")}
        self._beginnings = {name[:-1] for name in ids if name.endswith("*")}
        self._lengths = sorted(set(map(len, self._beginnings)))

    def __bool__(self) -> bool:
        return bool(self._titles or self._ids or self._beginnings)

    def keeps(self, hit: Hit) -> bool:
        """Whether a hit is not left out."""
        return not (
            hit.id in self._ids
            or self._begins(hit.id)
            or (self._ids and document_of(hit.id) in self._ids)
            or (self._titles and title_of(hit.contents) in self._titles)
        )

    def _begins(self, id: str) -> bool:
        # one look-up for each length, not one comparison for each of what may be thousands
        return any(id[:length] in self._beginnings for length in self._lengths[: bisect_right(self._lengths, len(id))])


def hits_told(request: wire_v1.SearchRequest, hits: list[Hit], query: str, said: list[bytes] | None) -> list[Any]:
    """Return hits for orjson, with what the request asks for; `said` is their metadata."""
    return [_hit(query, hit, request, metadata) for hit, metadata in zip(hits, said or [None] * len(hits), strict=True)]


def _hit(query: str, hit: Hit, request: wire_v1.SearchRequest, metadata: bytes | None) -> Any:
    if hit.line is not None and request.max_characters is None and not request.snippet:
        more = b"" if metadata is None else b', "metadata": ' + metadata
        return orjson.Fragment(hit.line[:-1] + b', "score": ' + orjson.dumps(hit.score) + more + b"}")
    told: dict[str, Any] = {"id": hit.id, "contents": hit.contents[: request.max_characters], "score": hit.score}
    if request.snippet:
        told["snippet"] = snippet(query, hit.contents, SNIPPET_CHARACTERS if request.snippet is True else request.snippet)
    if metadata is not None:
        told["metadata"] = orjson.Fragment(metadata)
    return told
