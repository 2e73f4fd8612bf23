"""Whether an index's files can be what they say, at the cost of a few pages of each: shapes and types, ends, order, samples.

A wrong number in the arrays of BM25 makes compiled code read beyond them, which ends the process; hashes find it, but reading an index
of many GiB takes minutes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from rag_serving import IndexingError
from rag_serving.corpus import CORPUS, METADATA, METADATA_OFFSETS, OFFSETS
from rag_serving.reading import mapped

_BLOCKS, _BLOCK = 64, 4096  # sampled of an array: how many, and their elements


def check_structure(directory: Path, manifest: dict[str, Any]) -> None:
    """Refuse an index whose files cannot be those of `manifest["passages"]` passages.

    Raises:
        IndexingError: the file, and what is wrong with it.
    """
    rows = int(manifest["passages"])
    _lines(directory, CORPUS, OFFSETS, rows, "passage", _passage)
    if METADATA in manifest["files"]:
        _lines(directory, METADATA, METADATA_OFFSETS, rows, "metadata", _metadata)
    if "bm25" in manifest["engines"]:
        _bm25(directory / "bm25", rows)


def _passage(line: bytes) -> bool:
    passage = json.loads(line)
    return isinstance(passage["id"], str) and isinstance(passage["contents"], str)


def _metadata(line: bytes) -> bool:
    return line in (b"\n", b"null\n") or isinstance(json.loads(line), dict)


def _lines(directory: Path, name: str, offsets_name: str, rows: int, what: str, fits: Callable[[bytes], bool]) -> None:
    path = directory / offsets_name
    offsets = _array(path, "iu", rows + 1)
    _require(int(offsets[0]) == 0, path, "does not begin at 0")
    _require(all((np.diff(block) > 0).all() for block in _blocks(offsets)), path, "does not rise")
    size = (directory / name).stat().st_size
    _require(int(offsets[-1]) == size, path, f"ends at {int(offsets[-1])}, but {name} has {size} bytes")
    with (directory / name).open("rb") as file:
        for row, which in ((0, "first"), (rows - 1, "last")):
            file.seek(int(offsets[row]))
            try:
                good = fits(file.read(int(offsets[row + 1] - offsets[row])))
            except (ValueError, KeyError, TypeError, RecursionError):
                good = False
            _require(good, directory / name, f"its {which} line is no {what}")


def _bm25(folder: Path, rows: int) -> None:
    names = ("data", "indices", "indptr")
    paths = {name: folder / f"{name}.csc.index.npy" for name in names}
    data, indices, indptr = (_array(paths[name], "f" if name == "data" else "iu") for name in names)
    _require(len(data) == len(indices), paths["data"], f"holds {len(data)} scores for {len(indices)} postings")
    _require(len(indptr) > 0 and int(indptr[0]) == 0, paths["indptr"], "does not begin at 0")
    _require(
        int(indptr[-1]) == len(indices), paths["indptr"], f"ends at {int(indptr[-1])}, but there are {len(indices)} postings"
    )
    # whole, for it is as long as the vocabulary only
    _require(bool((indptr[1:] >= indptr[:-1]).all()), paths["indptr"], "falls")
    for block in _blocks(indices):
        _require(
            int(block.min()) >= 0 and int(block.max()) < rows, paths["indices"], f"names passages beyond the {rows} there are"
        )
    for block in _blocks(data):
        _require(bool(np.isfinite(block).all()), paths["data"], "holds scores that are no numbers")
        _require(bool((block > 0).all()), paths["data"], "holds scores that are not positive")


def _array(path: Path, kinds: str, length: int | None = None) -> np.ndarray:
    try:
        array = mapped(path)
    except (OSError, ValueError) as error:
        raise IndexingError(f"{path} cannot be read ({error}); build the index again") from None
    _require(array.ndim == 1 and array.dtype.kind in kinds, path, f"holds {array.dtype} {array.shape}")
    _require(length in (None, len(array)), path, f"holds {len(array)} numbers instead of {length}")
    used, size = array.offset + array.nbytes, path.stat().st_size
    _require(used == size, path, f"says that it has {used} bytes, and has {size}")
    return array


def _blocks(array: np.ndarray) -> Iterator[np.ndarray]:
    """Yield blocks evenly from the whole, the first and the last among them; everything of a short array."""
    last = max(0, len(array) - _BLOCK)
    for start in np.unique(np.linspace(0, last, min(_BLOCKS, 1 + len(array) // _BLOCK)).astype(np.int64)) if len(array) else ():
        yield array[start : start + _BLOCK]


def _require(right: bool, path: Path, told: str) -> None:
    if not right:
        raise IndexingError(f"{path} is damaged: it {told}; build the index again, or copy it again".replace("it its", "its"))
