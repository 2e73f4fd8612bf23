"""Wire formats: what existing clients send and expect. Our own, `/v1/…`, are in `wire_v1`.

| format | path | spoken by |
|---|---|---|
| ReSearch | `/search`, `/batch_search` | ReSearch, ReCall, research_rl |
| R1-Searcher | `/queries` | R1-Searcher |
| Search-R1 | `/retrieve` with `queries` | Search-R1, slime, verl-tool, verl until early 2026, SkyRL-agent |
| SkyRL-gym | `/retrieve` with `query` | SkyRL-gym |
| rLLM | `/retrieve` with `query` and `top_k` | rLLM |

docs/serving.md says which clients were tried as they are, and of which date.
Limits are the server's settings and are checked there, so that one set of limits holds for all formats.
"""

from __future__ import annotations

from typing import Annotated, Any

import orjson
from pydantic import BaseModel, Field, model_validator

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
    """Search-R1: `queries`; its clients send `topk: null` for the default. SkyRL-gym: one `query`. rLLM: one `query`, and `top_k`."""

    queries: Queries | None = None
    query: Query | None = None
    topk: TopK | None = None
    top_k: TopK | None = Field(default=None, description="rLLM's; the answer is in its form then")
    return_scores: bool = False

    @model_validator(mode="after")
    def _one_of_two(self) -> RetrieveRequest:
        if (self.queries is None) == (self.query is None):
            raise ValueError("give either queries, a list of texts, or query, one text")
        return self


class Document(BaseModel):
    """A passage in FlashRAG's form."""

    id: str
    contents: str


class ScoredDocument(BaseModel):
    """A passage and its score, as Search-R1 nests them."""

    document: Document
    score: float


class RllmHit(BaseModel):
    """A passage as rLLM reads it."""

    id: str
    content: str
    score: float


class QueriesResponse(BaseModel):
    """R1-Searcher: the texts only."""

    queries: list[str]
    answers: list[list[str]]


class RetrieveResponse(BaseModel):
    """Search-R1: documents, or documents with scores."""

    result: list[list[ScoredDocument]] | list[list[Document]]


class RllmResponse(BaseModel):
    """rLLM: hits of its one query."""

    query: str
    results: list[RllmHit]


class Problem(BaseModel):
    """Why a request was not served; `reason` is a fixed word, the name of the limit where one was exceeded."""

    detail: str
    reason: str
    request_id: str


Documents = list[Document]
# a pair each: documents, scores. Written as lists, since OpenAPI tools stumble over tuples of different types
Scored = list[Documents | list[float]]
ScoredBatch = list[list[Documents] | list[list[float]]]


def passage(hit: Hit) -> Any:
    """Return a hit's ``{"id", "contents"}``, to be encoded by orjson: a corpus' line as it is."""
    return orjson.Fragment(hit.line) if hit.line is not None else hit.passage


def documents(hits: list[Hit]) -> list[Any]:
    """Return hits without their scores."""
    return [passage(hit) for hit in hits]


def texts(hits: list[Hit]) -> list[str]:
    """Return the contents of hits."""
    return [hit.contents for hit in hits]


def scores(hits: list[Hit]) -> list[float]:
    """Return the scores of hits."""
    return [hit.score for hit in hits]


def scored_documents(hits: list[Hit]) -> list[dict[str, Any]]:
    """Return hits as Search-R1 nests them."""
    return [{"document": passage(hit), "score": hit.score} for hit in hits]


def rllm_hits(hits: list[Hit]) -> list[dict]:
    """Return hits as rLLM reads them."""
    return [{"id": hit.id, "content": hit.contents, "score": hit.score} for hit in hits]
