"""Passages → term ids, by all cores, numbered as one process would number them: by the stems' first appearance."""

from __future__ import annotations

import os
import signal
import threading
from array import array
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any

import numpy as np

from rag_serving import IndexingError
from rag_serving.corpus import Corpus
from rag_serving.lookup import title_of
from rag_serving.vocabulary import tokenizer

CHUNK = 4_096  # passages that a process takes at a time
_ALONE = 20_000  # passages below which starting processes takes longer than it saves

_worker: _Words


class _Words:
    """One process's vocabulary. It tells which words and stems are new since it was last asked."""

    def __init__(self, directory: Path, language: str, title_weight: int) -> None:
        self._corpus, self._tokenizer, self._title_weight = Corpus(directory), tokenizer(language), title_weight
        self._told_words, self._told_stems = 0, 0

    def split(self, first: int, last: int) -> tuple[int, bytes, bytes, list[str], list[tuple[str, str]]]:
        """Return (process, ids of passages first … last, how many each passage has, new stems by id, new words with their stems)."""
        words = self._tokenizer
        ids, lengths = array("i"), array("i")
        for passage in words.streaming_tokenize(map(self._text, range(first, last))):
            ids.extend(passage)
            lengths.append(len(passage))
        stems = _since(words.stem_to_sid, self._told_stems)
        pairs = [(word, words.word_to_stem[word]) for word in _since(words.word_to_id, self._told_words)]
        self._told_stems, self._told_words = len(words.stem_to_sid), len(words.word_to_id)
        return os.getpid(), ids.tobytes(), lengths.tobytes(), stems, pairs

    def _text(self, row: int) -> str:
        contents = self._corpus[row]["contents"]
        return contents if self._title_weight == 1 else f"{title_of(contents)}\n" * (self._title_weight - 1) + contents


def _since(ordered: dict[str, int], count: int) -> list[str]:
    """Return the keys of a dict after its first `count`, without a walk over those."""
    return [key for _, key in zip(range(len(ordered) - count), reversed(ordered), strict=False)][::-1]


def _start(directory: Path, language: str, title_weight: int) -> None:
    global _worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle; it ends the workers
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _worker = _Words(directory, language, title_weight)


def _end_with_parent() -> None:
    """End this process when its parent ends: after a killed parent it would wait for ever."""
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _split(first: int, last: int) -> Any:
    return _worker.split(first, last)


class TermIds:
    """Numbers the words of a corpus from passage `first` on, beside those in `tokenizer`; afterwards that holds the vocabulary."""

    def __init__(
        self, directory: Path, language: str = "en", processes: int = 1, first: int = 0, title_weight: int = 1
    ) -> None:
        self._words, self._processes, self._first = (directory, language, title_weight), processes, first
        self.tokenizer = tokenizer(language)
        self._global_ids: dict[int, array] = {}  # by process: its own ids' numbers here

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield, for some passages at a time and in order, their ids (int32, one after the other) and how many each has.

        Raises:
            IndexingError: a process was killed.
        """
        for process, ids, lengths, stems, pairs in self._pieces():
            known = self.tokenizer.stem_to_sid
            numbers = self._global_ids.setdefault(process, array("i"))
            numbers.extend(known.setdefault(stem, len(known)) for stem in stems)
            for word, stem in pairs:
                self.tokenizer.word_to_stem[word] = stem
                self.tokenizer.word_to_id[word] = known[stem]
            yield np.frombuffer(numbers, np.int32)[np.frombuffer(ids, np.int32)], np.frombuffer(lengths, np.int32)

    def _pieces(self) -> Iterator[Any]:
        size = len(Corpus(self._words[0]))
        bounds = [(first, min(first + CHUNK, size)) for first in range(self._first, size, CHUNK)]
        if self._processes == 1 or size - self._first < _ALONE:
            words = _Words(*self._words)
            yield from (words.split(*bound) for bound in bounds)
            return
        with ProcessPoolExecutor(self._processes, get_context("spawn"), _start, self._words) as pool:
            waiting: deque[Future[Any]] = deque()
            try:
                for bound in bounds:
                    waiting.append(pool.submit(_split, *bound))
                    if len(waiting) > 3 * self._processes:  # what is finished waits here, in memory
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            except BrokenProcessPool as error:
                raise IndexingError(
                    "a process that splits text was killed (out of memory?): run the command again with fewer --processes, it goes on"
                ) from error
            finally:
                pool.shutdown(wait=True, cancel_futures=True)
