"""All settings of the service in one class; from defaults, a YAML file, RAG_SERVING_* and flags, the later the stronger."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from joblib import cpu_count  # minds a container's limit
from pydantic import BeforeValidator, Field, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, EnvSettingsSource, SettingsConfigDict, YamlConfigSettingsSource
from pydantic_settings.sources import NoDecode

from rag_serving import ServingError
from rag_serving.naming import NAME

PREFIX = "RAG_SERVING_"
DEFAULT_INDEX = "default"  # the name of an index that is given without one
_NAMED = re.compile(rf"({NAME})=(.+)", re.DOTALL)


def _split(value: Any) -> Any:
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


def _indexes(value: Any) -> Any:
    """Return directories by name, the default first, of a directory, texts `NAME=DIR`, or a mapping."""
    if value is None or isinstance(value, Mapping):
        pairs = [(str(name), path) for name, path in (value or {}).items()]
    else:
        given = value if isinstance(value, list) else [value]
        pairs = [_index(part) for one in given for part in re.split(rf",(?={_NAMED.pattern})", str(one))[::3]]
    for name, _ in pairs:
        if not _NAMED.fullmatch(f"{name}=."):
            raise ValueError(f"an index cannot be called {name[:100]!r}: letters, digits, '.', '_' and '-', 64 at most")
        if [other for other, _ in pairs].count(name) > 1:
            raise ValueError(f"two indexes are called {name!r}; give each a name of its own: NAME=DIR")
    return dict(sorted(pairs, key=lambda pair: pair[0] != DEFAULT_INDEX))


def _index(text: str) -> tuple[str, str]:
    found = _NAMED.fullmatch(text)
    return (found[1], found[2]) if found else (DEFAULT_INDEX, text)


# a flag stands in the process list
_SEEN = "prefer {}: all users of the machine can see flags"
Names = Annotated[list[str], NoDecode, BeforeValidator(_split)]
Indexes = Annotated[dict[str, Path], NoDecode, BeforeValidator(_indexes)]
Secrets = Annotated[list[SecretStr], NoDecode, BeforeValidator(_split)]


class Settings(BaseSettings):
    """What is in force; `rag-serving config` prints it with each value's origin."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="forbid", hide_input_in_errors=True)

    # what is served
    index: Indexes = Field(
        default={},
        description="directory made by `rag-serving index`; several: NAME=DIR each; the default: the first, or the one without a name",
    )
    retriever: Literal["auto", "bm25", "dense", "hybrid", "web", "milvus", "random", "nothing"] = Field(
        default="auto",
        description="auto: what the index holds; both bm25 and dense make a hybrid. random, nothing: controls, which do not search",
    )
    verify: Literal["auto", "always", "never"] = Field(
        default="auto",
        description="check the files' hashes at start; auto: beyond 2 GiB while it is served; never: sizes and structure",
    )
    threads: int = Field(default=0, ge=0, description="threads of the engine; 0: one per core")
    # dense
    encoder: str | None = Field(
        default=None, description="folder or hub id of the encoder; default: the one the index was built with"
    )
    query_prefix: str | None = Field(default=None, description="before each query; default: by the model's name")
    device: str = Field(
        default="cpu",
        description="cpu, cuda, cuda:1 …: where encoder, reranker and torch engine run; of several, comma-separated, the torch engine's "
        "vectors lie on all, the models on the first",
    )
    half: bool = Field(default=False, description="encoder in half precision (GPU)")
    vector_engine: Literal["faiss", "torch"] = Field(
        default="faiss", description="torch: exact search by matrix product on the device"
    )
    nprobe: int = Field(default=64, ge=1, description="lists visited by an IVF index")
    ef_search: int = Field(default=128, ge=1, description="candidates kept by an HNSW index")
    refine: int = Field(default=10, ge=1, description="times top_k: candidates that an index with Refine(…) compares again")
    # hybrid and rerank
    fusion_depth: int = Field(default=100, ge=1, description="hits of each retriever that are fused")
    fusion_k: int = Field(default=60, ge=1, description="the constant of reciprocal rank fusion")
    reranker: str | None = Field(
        default=None,
        description="folder or hub id of a cross-encoder or a late-interaction model (ColBERT); default: no reranking",
    )
    rerank_depth: int = Field(default=50, ge=1, description="hits that are reranked")
    # web
    web_url: str = Field(default="https://google.serper.dev/search", description="Serper-compatible search API")
    web_key: SecretStr = Field(default=SecretStr(""), description=f"its key; {_SEEN.format('RAG_SERVING_WEB_KEY')}")
    web_pages: bool = Field(default=False, description="fetch the pages found; else their snippets are the passages")
    web_cache: Path = Field(default=Path("web_cache"), description="where answers and pages are kept")
    # milvus
    milvus_uri: str = Field(default="", description="http://host:19530, or a file for milvus-lite")
    milvus_token: SecretStr = Field(
        default=SecretStr(""), description=f"user:password or API key; {_SEEN.format('RAG_SERVING_MILVUS_TOKEN')}"
    )
    milvus_collection: str = Field(default="passages", description="the collection")
    # server
    host: str = Field(default="127.0.0.1", description="address to listen on")
    port: int = Field(default=8000, ge=0, le=65535, description="port to listen on; 0: any free one")
    workers: int = Field(default=1, ge=1, description="processes that share port and index (memory map); for CPU indexes")
    tokens: Secrets = Field(
        default=[],
        description=f"accepted bearer tokens, comma-separated; none: no authentication; {_SEEN.format('tokens_file')}",
    )
    tokens_file: Path | None = Field(default=None, description="file of accepted bearer tokens, one per line")
    cors_origins: Names = Field(default=[], description="origins that browsers may call from, comma-separated")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(default="INFO", description="DEBUG also logs queries")
    log_format: Literal["text", "json"] = Field(default="text", description="how log lines look")
    drain_s: float = Field(default=30.0, gt=0, description="how long admitted requests may take after SIGTERM")
    # batching and cache
    max_batch: int = Field(default=64, ge=1, description="queries searched together")
    max_wait_ms: float = Field(default=0.0, ge=0, description="how long a query may wait for company while the engine is idle")
    max_queue: int = Field(default=2048, ge=1, description="queries waiting before requests are refused with 429")
    engine_timeout_s: float = Field(
        default=120.0, gt=0, description="a batch that takes longer: the engine hangs; not ready until it answers again"
    )
    deduplicate: bool = Field(default=True, description="answer identical queries in flight once")
    cache_mb: float = Field(default=256.0, ge=0, description="memory for answers already given, in MB; 0: no cache")
    cache_dir: Path | None = Field(default=None, description="keep answers on disk too")
    # limits
    max_query_characters: int = Field(default=20_000, ge=1, description="longest query")
    max_query_words: int = Field(default=1_024, ge=1, description="most words in a query")
    max_queries: int = Field(default=1_024, ge=1, description="most queries in one request")
    max_top_k: int = Field(default=1_000, ge=1, description="most passages per query")
    open_passages: int = Field(
        default=5, ge=1, description="passages on a page of /v1/open, where a request names no size; at most max_top_k"
    )
    max_passages: int = Field(default=20_000, ge=1, description="most passages in one answer: queries times passages per query")
    max_metadata_bytes: int = Field(default=8_000_000, ge=0, description="most metadata in one answer")
    max_body_bytes: int = Field(default=8_000_000, ge=1_000, description="largest request")
    max_head_bytes: int = Field(default=65_536, ge=1_000, description="largest address and headers of a request")
    max_connections: int = Field(
        default=4_096, ge=1, description="open connections of a worker; less where the process may not open as many files"
    )
    max_unread_bytes: int = Field(
        default=256_000_000,
        ge=1_000_000,
        description="answers of all connections that wait to be taken; beyond it, the connection that holds most is dropped",
    )
    receive_timeout_s: float = Field(default=20.0, gt=0, description="how long a client may take to send a request")
    send_timeout_s: float = Field(default=60.0, gt=0, description="how long a client may take to read an answer")

    @model_validator(mode="after")
    def _fits(self) -> Settings:
        if self.tokens_file is not None:
            self.tokens = [*self.tokens, *_read_tokens(self.tokens_file)]
        if self.max_queries > self.max_queue:
            raise ValueError(
                f"max_queries ({self.max_queries}) exceeds max_queue ({self.max_queue}): such a request could never be served"
            )
        if self.max_top_k > self.max_passages:
            raise ValueError(
                f"max_top_k ({self.max_top_k}) exceeds max_passages ({self.max_passages}): such a query could never be served"
            )
        if self.retriever == "web" and not self.web_key.get_secret_value():
            raise ValueError("retriever web needs web_key, the key of the search API")
        if self.retriever == "milvus" and not self.milvus_uri:
            raise ValueError("retriever milvus needs milvus_uri")
        if len(self.index) > 1 and self.retriever in ("web", "milvus"):
            raise ValueError(f"retriever {self.retriever} searches no index of ours; give --index once at the most")
        if self.workers > 1 and (self.device != "cpu" or self.retriever in ("web", "milvus")):
            raise ValueError("several workers are for CPU indexes: each would hold its own copy of what is on the device")
        if not self.devices or (len(self.devices) > 1 and "cpu" in self.devices and set(self.devices) != {"cpu"}):
            raise ValueError(
                f"device {self.device!r} must name a device, or several of one kind, comma-separated: cpu, cuda, cuda:0,cuda:1"
            )
        if len(self.devices) != 1 and self.vector_engine != "torch":
            raise ValueError(
                f"device {self.device!r} must be one, but for vector_engine torch, which spreads its vectors over several"
            )
        return self

    @property
    def devices(self) -> list[str]:
        """Where vectors lie; the models run on the first."""
        return _split(self.device)

    @property
    def names(self) -> list[str]:
        """The indexes' names, the default first."""
        return list(self.index) or [DEFAULT_INDEX]

    @property
    def directory(self) -> Path | None:
        """The default index's."""
        return next(iter(self.index.values()), None)

    def of(self, name: str) -> Settings:
        """Return the settings of one index; the memory for answers is its share."""
        if len(self.index) < 2:
            return self
        return self.model_copy(update={"index": {name: self.index[name]}, "cache_mb": self.cache_mb / len(self.index)})

    @property
    def engine_threads(self) -> int:
        """Threads of the engine in each worker."""
        return self.threads or max(1, cpu_count() // self.workers)


def _read_tokens(file: Path) -> list[SecretStr]:
    try:
        tokens = [SecretStr(line.strip()) for line in file.read_text("utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"tokens_file {file} cannot be read ({type(error).__name__})") from None
    if not tokens:  # an empty list would let everybody in
        raise ValueError(f"tokens_file {file} holds no token; write one per line")
    return tokens


Origins = dict[str, str]


def load_settings(flags: dict[str, Any], config: Path | None = None) -> tuple[Settings, Origins]:
    """Return the settings and, per field, where its value came from.

    Raises:
        ServingError: an unknown name or a value that cannot be, with its origin.
    """
    fields = Settings.model_fields
    if config is not None and not config.is_file():
        raise ServingError(f"there is no configuration file {config}")
    merged: dict[str, Any] = {}
    origins: Origins = dict.fromkeys(fields, "default")
    try:
        file = YamlConfigSettingsSource(Settings, yaml_file=config)() if config else {}
    except Exception as error:  # the YAML parser's own exceptions
        raise ServingError(f"{config} is no YAML mapping: {error}") from None
    environment = EnvSettingsSource(Settings)()
    known = {PREFIX + name.upper() for name in fields}
    if unknown := [name for name in os.environ if name.upper().startswith(PREFIX) and name.upper() not in known]:
        raise ServingError(f"unknown setting {unknown[0]} in the environment; known: {', '.join(sorted(known))}")
    for source, values in ((str(config), file), ("environment", environment), ("flag", flags)):
        for name, value in values.items():
            if name not in fields:
                raise ServingError(f"unknown setting {name!r} ({source}); known: {', '.join(sorted(fields))}")
            merged[name] = value
            origins[name] = f"environment {PREFIX}{name.upper()}" if source == "environment" else source
    try:
        # the sources are merged above: only what is given counts here
        return _Merged(**merged), origins
    except ValidationError as error:
        lines = []
        for problem in error.errors(include_input=False, include_url=False):
            name = str(problem["loc"][0]) if problem["loc"] else ""
            where = f"{name} ({origins.get(name, '?')}): " if name else ""
            lines.append(f"{where}{problem['msg'].removeprefix('Value error, ')}")
        raise ServingError("invalid settings: " + "; ".join(lines)) from None


class _Merged(Settings):
    @classmethod
    def settings_customise_sources(cls, settings_cls, init_settings, env_settings, dotenv_settings, file_secret_settings):
        return (init_settings,)
