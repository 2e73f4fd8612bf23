"""`manifest.json`: what an index is, and the hashes by which the server knows that its files belong together."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from rag_serving import IndexingError
from rag_serving.indexing.replace import aside
from rag_serving.reading import small_json

MANIFEST, FORMAT_VERSION = "manifest.json", 2
_HASHED_BY_DEFAULT = 2 << 30  # bytes; larger indexes are hashed at start only when asked to


def sha256(path: Path) -> str:
    """Return the hash of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file whole or not at all (write, fsync, rename)."""
    part = path.with_name(path.name + ".part")
    with part.open("w", encoding="utf-8") as file:
        json.dump(value, file, indent=2)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def files_of(directory: Path, without: Collection[str] = ()) -> dict[str, dict[str, Any]]:
    """Return size and hash of every file of an index but the manifest and those named, by its path in the directory."""
    return {
        name: {"bytes": (directory / name).stat().st_size, "sha256": sha256(directory / name)}
        for name in sorted(set(_names(directory)) - set(without))
    }


def _names(directory: Path) -> Iterator[str]:
    for path in directory.rglob("*"):
        if path.is_file() and path.name != MANIFEST:
            yield path.relative_to(directory).as_posix()


def index_id(corpus_sha256: str, engines: dict[str, Any], metadata_sha256: str | None = None) -> str:
    """Return the name of an index: the same corpus with the same metadata and settings has the same name on every machine."""
    named = [corpus_sha256, engines] if metadata_sha256 is None else [corpus_sha256, engines, metadata_sha256]
    return hashlib.sha256(json.dumps(named, sort_keys=True).encode()).hexdigest()[:16]


def read_manifest(directory: Path) -> dict[str, Any]:
    """Return the manifest of the index in `directory`.

    Raises:
        IndexingError: it is no index, or of another version.
    """
    make = f"make one with: rag-serving index --corpus FILE --out {directory}"
    try:
        manifest = small_json(directory / MANIFEST)
    except (OSError, ValueError) as error:
        if not directory.exists() and aside(directory).exists():
            raise IndexingError(
                f"{directory} was being replaced when its builder was killed; the old index is {aside(directory)}: "
                "rename it, or run rag-serving index again"
            ) from None
        raise IndexingError(f"{directory} is no index ({error}); {make}") from None
    if not isinstance(manifest, dict) or manifest.get("format_version") != FORMAT_VERSION:
        raise IndexingError(f"{directory} was built by another version of rag-serving; {make} --force")
    return manifest


def is_index(directory: Path) -> bool:
    """Whether the manifest in `directory` is one of ours, of whatever version: other programs have a manifest.json, too."""
    try:
        manifest = small_json(directory / MANIFEST)
    except (OSError, ValueError):
        return False
    return isinstance(manifest, dict) and {"format_version", "index_id"} <= manifest.keys()


def large(manifest: dict[str, Any]) -> bool:
    """Whether hashing the index takes longer than a start may."""
    return sum(entry["bytes"] for entry in manifest["files"].values()) > _HASHED_BY_DEFAULT


def _own(directory: Path) -> None:
    """Refuse a link that leads out of an index, whose target would be served passage by passage, and pipes, sockets and devices."""
    root = Path(os.path.realpath(directory))
    # a snapshot in Hugging Face's cache consists of links to the files of its repository, which that cache itself has made; an index may be
    # a folder of it
    snapshot = next((one for one in (root, *root.parents) if one.parent.name == "snapshots"), None)
    roots = (root, snapshot.parents[1] / "blobs") if snapshot else (root,)

    def unlisted(error: OSError) -> None:
        if os.access(error.filename, os.X_OK):  # else nothing in it can be read: a volume's lost+found
            raise IndexingError(
                f"{directory}: {error.filename} cannot be listed ({error.strerror}), and may hold links that leave the index; nothing is "
                "read. Let this user list it: chmod u+r"
            )

    for folder, folders, files in os.walk(root, onerror=unlisted):
        for path in (Path(folder, name) for name in (*folders, *files)):
            name, real = path.relative_to(root).as_posix(), Path(os.path.realpath(path))
            if not any(real.is_relative_to(one) for one in roots):
                raise IndexingError(
                    f"{directory}: {name} is a link to {real}, outside of the index; nothing is read. If you trust who made it, copy it "
                    f"without links: cp -rL {directory} COPY"
                )
            if real.exists() and not real.is_file() and not real.is_dir():
                raise IndexingError(f"{directory}: {name} is neither a file nor a directory; nothing is read. Remove it")


def check(directory: Path, manifest: dict[str, Any], verify: str = "auto") -> None:
    """Refuse an index whose files are not those it was built with: by size, and by hash (`verify`: auto, always, never).

    Raises:
        IndexingError: a file is missing, or not the one that the index was built with; a link or a name leads out of the directory; or
            something in it is neither a file nor a directory.
    """
    _own(directory)
    files: dict[str, dict[str, Any]] = manifest["files"]
    named = [*files, *(engine.get("file", "") for engine in manifest["engines"].values())]
    if outside := [name for name in named if Path(name).is_absolute() or ".." in Path(name).parts]:
        raise IndexingError(f"{directory}: {MANIFEST} names a file outside of the index, {outside[0]!r}; nothing is read")
    hashed = verify == "always" or (verify == "auto" and not large(manifest))
    for name, entry in files.items():
        path = directory / name
        if not path.is_file():
            raise IndexingError(f"{directory}: {name} is missing; build the index again")
        size = path.stat().st_size
        if size != entry["bytes"] or (hashed and sha256(path) != entry["sha256"]):
            told = f"{size} bytes instead of {entry['bytes']}" if size != entry["bytes"] else "its hash differs"
            raise IndexingError(
                f"{directory}: {name} is not the file this index was built with ({told}); build the index again"
            )
