"""Our own wire formats: search with what agents and leakage tests need, one passage, a document's passages in order, pages of one."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, Field, model_validator

from rag_serving.where import DESCRIPTION
from rag_serving.wire import Document, Queries, TopK

MAX_EXCLUDED = 10_000  # titles, and ids, that a search may leave out

Ids = Annotated[
    list[str],
    Field(description="ids of passages, or of documents: a passage's id without its number, page of page#3, page-3 and page_3"),
]

Metadata = Annotated[
    bool, Field(description="add what the corpus says of each passage beside its text; max_metadata_bytes in all")
]

IndexName = Annotated[
    str | None, Field(description="the index, by its name in the settings; default: the path's, else the default index")
]


class SearchRequest(BaseModel):
    """Ours."""

    queries: Queries
    index: IndexName = None
    top_k: TopK = 5
    snippet: bool | Annotated[int, Field(ge=1)] = Field(
        default=False, description="add the part of the passage with the most words of the query; true: 300 characters"
    )
    max_characters: int | None = Field(default=None, ge=0, description="cut contents after so many")
    metadata: Metadata = False
    exclude_titles: list[str] = Field(
        default=[], max_length=MAX_EXCLUDED, description="leave out passages with these titles, the first line of contents"
    )
    exclude_ids: Ids = Field(
        default=[],
        max_length=MAX_EXCLUDED,
        description="leave out these passages and documents; page* leaves out what begins so",
    )
    where: dict[str, Any] | None = Field(default=None, description=DESCRIPTION, examples=[{"year": {"gte": 2018, "lt": 2020}}])


class Passage(Document):
    """A passage; `metadata`, where it was asked for: null if it was too large to be kept at indexing."""

    metadata: dict[str, Any] | None = None


class Hit(Passage):
    """A passage and its score; `snippet` where it was asked for."""

    score: float
    snippet: str | None = None


class Timings(BaseModel):
    """Milliseconds: waiting in the queue and in the engine, each of the request's slowest query, and in all."""

    queue_ms: float
    engine_ms: float
    total_ms: float


class SearchResponse(BaseModel):
    """Ours. `cached[i]`: the answer to query i came from the cache. With exclusions or `where`, per query: how many hits were left out, how
    many are missing to k, and whether some are missing because no more hits may be looked at (if not, there are no others).
    """

    request_id: str
    index_id: str
    results: list[list[Hit]]
    cached: list[bool]
    timings: Timings
    excluded: list[int] | None = None
    missing: list[int] | None = None
    bound_met: list[bool] | None = None


class DocumentsRequest(BaseModel):
    """A document's passages, in the order of the corpus: all that have this title, or those with these ids."""

    index: IndexName = None
    title: str | None = Field(default=None, description="the first line of contents")
    ids: Ids | None = None
    start: int = Field(default=0, ge=0, alias="from", description="the first passage of the document that is wanted, from 0")
    stop: int | None = Field(
        default=None, ge=0, alias="to", description="where to end, not included; at most max_top_k further"
    )

    metadata: Metadata = False

    @model_validator(mode="after")
    def _one_of_two(self) -> DocumentsRequest:
        if (self.title is None) == (self.ids is None):
            raise ValueError("give either title or ids")
        return self


class DocumentsResponse(BaseModel):
    """Passages `from` to `to` of `total`."""

    index_id: str
    total: int
    passages: list[Passage]


class OpenRequest(BaseModel):
    """A page of the document that holds a passage: what stands before and after it."""

    index: IndexName = None
    id: str = Field(description="of the passage")
    page: int | None = Field(
        default=None, description="counted from 1; default: the one that holds the passage", json_schema_extra={"minimum": 1}
    )
    size: int | None = Field(
        default=None,
        description="passages per page, up to max_top_k; default: the server's open_passages",
        json_schema_extra={"minimum": 1},
    )
    metadata: Metadata = False


class OpenResponse(BaseModel):
    """Page `page` of `pages` of the document that holds the passage `id`; `title` is that passage's."""

    index_id: str
    id: str
    title: str
    page: int
    pages: int
    passages: list[Passage]


class PassageResponse(Passage):
    """One passage; its title, the first line of its contents; which of the passages with this title it is, from 0, and of how many."""

    title: str
    position: int
    total: int
