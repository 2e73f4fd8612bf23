"""Wire formats: what existing clients send and expect, and our own `/v1/search`.

| format | path | spoken by |
|---|---|---|
| ReSearch | `/search`, `/batch_search` | ReSearch, ReCall, research_rl |
| R1-Searcher | `/queries` | R1-Searcher |
| Search-R1 | `/retrieve` | Search-R1, SkyRL-gym, slime, verl-tool |
| v1 | `/v1/search` | whoever wants scores, timings and the index's id |

Limits are the server's settings and are checked there, so that one set of limits holds for all formats.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, Field

from rag_serving.retrievers.base import Hit

# bounds are in the schema for those who read it, and checked by `Service.check`, whose answer names the limit
TopK = Annotated[int, Field(description="passages per query, up to the server's max_top_k", json_schema_extra={"minimum": 1})]
Query = Annotated[str, Field(description="not blank; up to max_query_characters", json_schema_extra={"minLength": 1})]
Queries = Annotated[list[Query], Field(description="up to the server's max_queries", json_schema_extra={"minItems": 1})]


class SearchRequest(BaseModel):
    """ReSearch: one query."""

    query: Query
    top_n: TopK = 10
    return_score: bool = False


class BatchSearchRequest(BaseModel):
    """ReSearch: several queries."""

    query: Queries
    top_n: TopK = 10
    return_score: bool = False


class QueriesRequest(BaseModel):
    """R1-Searcher."""

    queries: Queries
    k: TopK = 3


class RetrieveRequest(BaseModel):
    """Search-R1. Its clients send `topk: null` for the default."""

    queries: Queries
    topk: TopK | None = None
    return_scores: bool = False


class V1Request(BaseModel):
    """Ours."""

    queries: Queries
    top_k: TopK = 5


class Document(BaseModel):
    """A passage in FlashRAG's form."""

    id: str
    contents: str


class ScoredDocument(BaseModel):
    """A passage and its score, as Search-R1 nests them."""

    document: Document
    score: float


class V1Hit(Document):
    """A passage and its score."""

    score: float


class Timings(BaseModel):
    """Milliseconds: waiting in the queue and in the engine, each of the request's slowest query, and in all."""

    queue_ms: float
    engine_ms: float
    total_ms: float


class QueriesResponse(BaseModel):
    """R1-Searcher: the texts only."""

    queries: list[str]
    answers: list[list[str]]


class RetrieveResponse(BaseModel):
    """Search-R1: documents, or documents with scores."""

    result: list[list[ScoredDocument]] | list[list[Document]]


class V1Response(BaseModel):
    """Ours. `cached[i]`: the answer to query i came from the cache."""

    request_id: str
    index_id: str
    results: list[list[V1Hit]]
    cached: list[bool]
    timings: Timings


class Problem(BaseModel):
    """Why a request was not served; `reason` is a fixed word, the name of the limit where one was exceeded."""

    detail: str
    reason: str
    request_id: str


Documents = list[Document]
# a pair each: documents, scores. Written as lists, since OpenAPI tools stumble over tuples of different types
Scored = list[Documents | list[float]]
ScoredBatch = list[list[Documents] | list[list[float]]]


def documents(hits: list[Hit]) -> list[dict]:
    """Return hits without their scores."""
    return [{"id": hit.id, "contents": hit.contents} for hit in hits]


def scores(hits: list[Hit]) -> list[float]:
    """Return the scores of hits."""
    return [hit.score for hit in hits]


def scored_documents(hits: list[Hit]) -> list[dict]:
    """Return hits as Search-R1 nests them."""
    return [{"document": {"id": hit.id, "contents": hit.contents}, "score": hit.score} for hit in hits]


def v1_hits(hits: list[Hit]) -> list[dict]:
    """Return hits in our own form."""
    return [{"id": hit.id, "contents": hit.contents, "score": hit.score} for hit in hits]
