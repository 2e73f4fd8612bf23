"""A dump as blocks of whole lines. Of a plain file, each worker reads its own range of bytes; a packed stream is unpacked here."""

from __future__ import annotations

import bz2
import gzip
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from research_rl.errors import DataError

BLOCK = 8 << 20  # bytes of text
PACKED = {".gz": gzip.decompress, ".bz2": bz2.decompress}
STREAMS = {".gz": gzip.open, ".bz2": bz2.open}


@dataclass(frozen=True)
class Block:
    """Lines of a file: `data`, or bytes `start` to `end` of it (a line belongs to the block in which it begins).

    `packed` is the suffix of what `data`, or the whole file, is packed with; `read` counts the input's bytes, for the progress bar.
    """

    name: str
    read: int
    start: int = 0
    end: int = -1
    data: bytes | None = None
    packed: str = ""

    def lines(self) -> list[bytes]:
        """Return the lines, empty ones too: their numbers count."""
        data = PACKED[self.packed](self._bytes()) if self.packed else self._bytes()
        return data.removesuffix(b"\n").split(b"\n") if data else []

    def _bytes(self) -> bytes:
        if self.data is not None:
            return self.data
        with open(self.name, "rb") as file:  # noqa: PTH123 (hot path)
            if self.start:
                file.seek(self.start - 1)
                file.readline()  # the end of a line that began in the block before
            if self.end < 0:
                return file.read()
            if file.tell() >= self.end:
                return b""
            data = file.read(self.end - file.tell())
            return data if data.endswith(b"\n") else data + file.readline()


def files_of(source: Path, names: tuple[str, ...]) -> list[Path]:
    """Return the files of a dump: itself, or those below a folder that end as the format's do (packed or not), in order.

    Raises:
        DataError: there is none.
    """
    if source.is_file():
        return [source]
    if not source.is_dir():
        raise DataError(f"no dump at {source}: give a file, or a folder of files")
    files = sorted(path for path in source.rglob("*") if path.is_file() and not path.name.startswith("."))
    files = [path for path in files if _plain(path).endswith(names)]
    if not files:
        raise DataError(f"no file below {source} ends in {' or '.join(names)} (.gz and .bz2 may follow)")
    return files


def _plain(path: Path) -> str:
    return path.name.removesuffix(path.suffix) if path.suffix in PACKED else path.name


def blocks_of(source: Path, names: tuple[str, ...]) -> Iterator[Block]:
    """Yield the blocks of a dump, always cut in the same way.

    Raises:
        DataError: there is nothing, or a packed file breaks off.
    """
    files = files_of(source, names)
    for path in files:
        try:
            if _plain(path).endswith((".tar", ".tgz")):
                stream = _members(path)
            elif path.suffix in STREAMS:
                stream = (
                    _stream(path)
                    if len(files) == 1 or path.stat().st_size > BLOCK
                    else iter([Block(str(path), path.stat().st_size, packed=path.suffix)])
                )
            else:
                size = path.stat().st_size
                stream = (
                    Block(str(path), min(BLOCK, size - start), start, min(start + BLOCK, size))
                    for start in range(0, size, BLOCK)
                )
            yield from stream
        except (EOFError, OSError, tarfile.TarError, zlib.error) as error:
            raise DataError(f"{path} cannot be unpacked to its end ({error}): fetch it again") from error


def _stream(path: Path) -> Iterator[Block]:
    with path.open("rb") as raw, STREAMS[path.suffix](raw) as file:
        before = 0
        while data := file.read(BLOCK):
            data += file.readline()
            yield Block(str(path), raw.tell() - before, data=data)
            before = raw.tell()


def _members(path: Path) -> Iterator[Block]:
    with path.open("rb") as raw, tarfile.open(fileobj=raw, mode="r|*") as archive:
        before = 0
        for member in archive:
            if member.isfile() and (file := archive.extractfile(member)):
                suffix = Path(member.name).suffix
                packed = suffix if suffix in PACKED else ""
                yield Block(f"{path}:{member.name}", raw.tell() - before, data=file.read(), packed=packed)
                before = raw.tell()
