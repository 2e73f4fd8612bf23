"""The retrieval service: FlashRAG indexes behind HTTP. It imports nothing of research_rl; they meet on the wire only."""

__all__ = ["IndexingError", "MissingExtraError", "ServingError"]


class ServingError(ValueError):
    """A mistake of the operator's: the message says what was wrong and what to do. Shown without a traceback."""


class IndexingError(ServingError):
    """An index or a corpus that cannot be used."""


class MissingExtraError(ImportError):
    """A package of an extra (`serve`, `web`, `milvus`, `mcp`) is not installed."""

    def __init__(self, package: str, extra: str = "serve") -> None:
        super().__init__(
            f"the package {package!r} is not installed; install the extra that brings it: pip install 'research-rl[{extra}]'"
        )
        self.package, self.extra = package, extra

    def __reduce__(self):  # picklable across processes
        return (type(self), (self.package, self.extra))
