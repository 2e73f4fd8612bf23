"""A remote engine for corpora that outgrow one machine: a Milvus collection, searched through its own client.

Milvus was chosen because one client speaks to all sizes of it: a file (milvus-lite, used by the tests), one server, a cluster; and
because a collection can hold the passages beside their vectors, so nothing of the corpus is needed where the service runs.
The collection carries the manifest of the corpus that it was filled from.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

from rag_serving import IndexingError, MissingExtraError, ServingError
from rag_serving.retrievers.base import Hit, Retriever
from rag_serving.retrievers.encoder import Encoder

MAX_ID_BYTES, MAX_CONTENTS_BYTES = 512, 65_535


def _client(uri: str, token: str) -> Any:
    try:
        from pymilvus import MilvusClient
        from pymilvus.exceptions import MilvusException
    except ImportError as error:
        raise MissingExtraError(error.name or "pymilvus", "milvus") from error
    try:
        return MilvusClient(uri, token=token)
    except (MilvusException, ValueError) as error:
        raise ServingError(f"no Milvus at {uri}: {error}") from error


class Milvus(Retriever):
    """The passages of a collection that are nearest to the query by inner product."""

    def __init__(self, uri: str, collection: str, encoder: Encoder, token: str = "", timeout_s: float = 30.0) -> None:
        """Connect.

        Raises:
            ServingError: there is no server, or no such collection, or it was filled with another encoder's vectors.
            MissingExtraError: a package of the `milvus` extra is not installed.
        """
        self._milvus, self._collection, self._encoder, self._timeout_s = _client(uri, token), collection, encoder, timeout_s
        if not self._milvus.has_collection(collection):
            raise IndexingError(f"{uri} has no collection {collection!r}; fill one with: rag-serving index --milvus {uri} …")
        described = self._milvus.describe_collection(collection)
        try:
            told = described.get("properties", {}).get("manifest") or described.get("description") or "{}"
            self.manifest: dict[str, Any] = json.loads(told)
        except json.JSONDecodeError:
            self.manifest = {}
        vectors = next((field for field in described["fields"] if field["name"] == "vector"), None)
        if vectors is None or int(vectors["params"]["dim"]) != encoder.dimension:
            raise IndexingError(
                f"collection {collection!r} does not hold vectors of {encoder.dimension} numbers, as the encoder makes"
            )
        self._milvus.load_collection(collection)
        self._size = int(self._milvus.get_collection_stats(collection)["row_count"])

    @property
    def size(self) -> int:
        return self._size

    def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        if not queries or k < 1:
            return [[] for _ in queries]
        found = self._milvus.search(
            self._collection,
            data=self._encoder.queries(queries).tolist(),
            limit=k,
            output_fields=["contents"],
            search_params={"metric_type": "IP"},
            timeout=self._timeout_s,
        )
        return [[Hit(str(hit["id"]), hit["entity"]["contents"], float(hit["distance"])) for hit in hits] for hits in found]

    def close(self) -> None:
        self._milvus.close()


def fill(
    uri: str,
    collection: str,
    passages: Iterable[dict[str, str]],
    encoder: Encoder,
    manifest: dict[str, Any],
    *,
    token: str = "",
    batch: int = 256,
) -> int:
    """Make the collection, write passages and vectors by their ids, return how many. Written again, a passage replaces itself.

    Raises:
        IndexingError: an id or a passage is longer than Milvus takes.
    """
    from pymilvus import DataType

    milvus = _client(uri, token)
    if not milvus.has_collection(collection):
        schema = milvus.create_schema(auto_id=False, description=json.dumps(manifest))
        schema.add_field("id", DataType.VARCHAR, is_primary=True, max_length=MAX_ID_BYTES)
        schema.add_field("contents", DataType.VARCHAR, max_length=MAX_CONTENTS_BYTES)
        schema.add_field("vector", DataType.FLOAT_VECTOR, dim=encoder.dimension)
        index = milvus.prepare_index_params()
        index.add_index("vector", index_type="AUTOINDEX", metric_type="IP")
        # milvus-lite keeps no description, so the manifest is a property too
        properties = {"manifest": json.dumps(manifest)}
        milvus.create_collection(collection, schema=schema, index_params=index, properties=properties)
    written = 0
    for rows in _batches(passages, batch):
        for row in rows:
            if len(row["id"].encode()) > MAX_ID_BYTES or len(row["contents"].encode()) > MAX_CONTENTS_BYTES:
                raise IndexingError(
                    f"passage {row['id'][:40]!r} is too long for Milvus (id {MAX_ID_BYTES}, contents {MAX_CONTENTS_BYTES} bytes)"
                )
        vectors = encoder.passages([row["contents"] for row in rows])
        milvus.upsert(collection, [{**row, "vector": vector.tolist()} for row, vector in zip(rows, vectors, strict=True)])
        written += len(rows)
    milvus.close()
    return written


def _batches(rows: Iterable[dict[str, str]], size: int) -> Iterator[list[dict[str, str]]]:
    rows = iter(rows)
    while batch := list(islice(rows, size)):
        yield batch
