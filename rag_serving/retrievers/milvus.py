"""A remote engine for corpora that outgrow one machine: a Milvus collection, searched through its own client.

Milvus was chosen because one client speaks to all sizes of it: a file (milvus-lite, used by the tests), one server, a cluster; and
because a collection can hold the passages beside their vectors, so nothing of the corpus is needed where the service runs.
The collection carries the manifest of the corpus that it was filled from: the encoder, its prefixes, pooling and length are served as
they were filled. Errors tell neither address nor what Milvus says, which may hold a password or a passage.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np

from rag_serving import IndexingError, MissingExtraError, ServingError
from rag_serving.retrievers.base import Hit, Retriever, shown
from rag_serving.retrievers.encoder import Encoder

MAX_ID_BYTES, MAX_CONTENTS_BYTES = 512, 65_535
SAME = 0.9  # cosine of two vectors of one passage: half precision costs less than 0.01, another model gives about 0


def _client(uri: str, token: str) -> Any:
    try:
        from pymilvus import MilvusClient
        from pymilvus.exceptions import MilvusException
    except ImportError as error:
        raise MissingExtraError(error.name or "pymilvus", "milvus") from error
    try:
        return MilvusClient(uri, token=token)
    except (MilvusException, ValueError) as error:
        told = f"{type(error).__name__}, code {getattr(error, 'code', 'none')}"
        raise ServingError(f"no Milvus at {shown(uri)} ({told}); check its address and its token") from None


@contextlib.contextmanager
def _telling(collection: str) -> Iterator[None]:
    """Turn an error of Milvus' into one that can be shown to a client."""
    from pymilvus.exceptions import MilvusException

    try:
        yield
    except MilvusException as error:
        raise ServingError(f"Milvus failed with collection {collection!r}: {type(error).__name__}, code {error.code}") from None


def _manifest(described: dict[str, Any]) -> dict[str, Any]:
    try:
        told = json.loads(described.get("properties", {}).get("manifest") or described.get("description") or "{}")
    except json.JSONDecodeError:
        return {}
    return told if isinstance(told, dict) else {}


class Milvus(Retriever):
    """The passages of a collection that are nearest to the query by inner product."""

    nested_to = 0  # its index is approximate, and how far it looks is Milvus' affair

    def __init__(
        self, uri: str, collection: str, encoder: Callable[[dict[str, Any]], Encoder], token: str = "", timeout_s: float = 30.0
    ) -> None:
        """Connect. `encoder` makes the encoder of what the collection says that it was filled with (empty if it says nothing).

        Raises:
            ServingError: there is no server, or no such collection, or it was filled with another encoder's vectors.
            MissingExtraError: a package of the `milvus` extra is not installed.
        """
        self._milvus, self._collection, self._timeout_s = _client(uri, token), collection, timeout_s
        with _telling(collection):
            if not self._milvus.has_collection(collection):
                where = shown(uri)
                raise IndexingError(
                    f"{where} has no collection {collection!r}; fill one with: rag-serving index --milvus {where} …"
                )
            described = self._milvus.describe_collection(collection)
            self.manifest = _manifest(described)
            filled_with = self.manifest.get("engines", {}).get("milvus", {})
            self._encoder = encoder(filled_with)
            vectors = next((field for field in described["fields"] if field["name"] == "vector"), None)
            self._milvus.load_collection(collection)
            self._size = int(self._milvus.get_collection_stats(collection)["row_count"])
            if vectors is None or int(vectors["params"]["dim"]) != self._encoder.dimension or not self._same_vectors():
                raise IndexingError(
                    f"collection {collection!r} was filled with the encoder {filled_with.get('encoder', 'unknown')!r}; "
                    f"{self._encoder.model!r} makes other vectors: leave --encoder out, or fill another collection with it"
                )

    def _same_vectors(self) -> bool:
        """Whether the encoder makes of a passage of the collection the vector that lies beside it; a model's name says little."""
        rows = self._milvus.query(self._collection, filter='id != ""', limit=1, output_fields=["contents", "vector"])
        if not rows:
            return True
        there, here = np.asarray(rows[0]["vector"], dtype=np.float32), self._encoder.passages([rows[0]["contents"]])[0]
        return float(there @ here) > SAME

    @property
    def size(self) -> int:
        return self._size

    def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        if not queries or k < 1:
            return [[] for _ in queries]
        vectors = self._encoder.queries(queries).tolist()
        with _telling(self._collection):
            found = self._milvus.search(
                self._collection,
                data=vectors,
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
        IndexingError: an id or a passage is longer than Milvus takes, or the collection was filled with another encoder or its settings.
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
    else:
        _refuse_mixture(_manifest(milvus.describe_collection(collection)), manifest, collection)
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


def _refuse_mixture(there: dict[str, Any], here: dict[str, Any], collection: str) -> None:
    old, new = (manifest.get("engines", {}).get("milvus", {}) for manifest in (there, here))
    # what an older version did not write cannot be compared
    if other := [name for name in old if name in new and old[name] != new[name]]:
        told = "; ".join(f"{name} {old[name]!r}, now {new[name]!r}" for name in other)
        raise IndexingError(
            f"collection {collection!r} was filled otherwise ({told}): fill another --collection, or drop this one"
        )


def _batches(rows: Iterable[dict[str, str]], size: int) -> Iterator[list[dict[str, str]]]:
    rows = iter(rows)
    while batch := list(islice(rows, size)):
        yield batch
