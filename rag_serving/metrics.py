"""What Prometheus reads at `/metrics`; with several workers, summed over them. `index` is the name of an index, of the settings."""

from __future__ import annotations

import os
from functools import cache

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest, multiprocess
from prometheus_client.registry import REGISTRY

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)

REQUESTS = Counter("rag_requests", "Requests answered", ["path", "status"])
REQUEST_SECONDS = Histogram(
    "rag_request_seconds", "From the request's head to the answer's last byte", ["path"], buckets=_SECONDS
)
QUERIES = Counter(
    "rag_queries",
    "Queries by where their answer came from: engine, cache, or another request in flight",
    ["index", "answered_by"],
)
STAGE_SECONDS = Histogram(
    "rag_stage_seconds", "Seconds of a query in the queue and of a batch in the engine", ["index", "stage"], buckets=_SECONDS
)
BATCH_SIZE = Histogram(
    "rag_batch_size", "Queries searched together", ["index"], buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
)
QUEUED = Gauge("rag_queued", "Queries waiting", ["index"], multiprocess_mode="livesum")
REFUSED = Counter("rag_refused", "Requests refused", ["reason"])
ABANDONED = Counter("rag_abandoned", "Queries taken out of the queue: nobody waited for their answers any more", ["index"])
ENGINE_FAILURES = Counter("rag_engine_failures", "Searches that raised", ["index"])
RELOADS = Counter("rag_reloads", "Reloads of the index: done or failed", ["index", "outcome"])
SERVED = Gauge(
    "rag_index", "Workers that serve the index of this name and id", ["index", "index_id"], multiprocess_mode="livesum"
)
DAMAGED = Gauge(
    "rag_index_damaged",
    "Workers that serve an index with a file of another hash or size",
    ["index"],
    multiprocess_mode="livesum",
)
READY = Gauge("rag_ready", "Workers that are ready, by index", ["index"], multiprocess_mode="livesum")

for _metric in (REQUESTS, REQUEST_SECONDS, QUERIES, STAGE_SECONDS, BATCH_SIZE, QUEUED):
    # a request names a dozen children, and each time the library would look for them under a lock
    setattr(_metric, "labels", cache(_metric.labels))  # noqa: B010  # for a type checker it is a method


def exposition() -> bytes:
    """Return the metrics in Prometheus' text format."""
    registry = REGISTRY
    if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
        registry = CollectorRegistry()
        multiprocess.MultiProcessCollector(registry)
    return generate_latest(registry)
