"""Work on blocks over all cores, in order, with a progress bar in bytes of the input."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from data_preprocess.corpus.blocks import Block
from research_rl.cpu import cores
from research_rl.errors import DataError, missing_extra

Result = TypeVar("Result")


def in_order(
    blocks: Iterable[Block],
    work: Callable[..., Result],
    arguments: tuple,
    workers: int,
    start: Callable[..., None],
    start_arguments: tuple,
) -> Iterator[tuple[Block, Result]]:
    """Yield each block and ``work(block, *arguments)``, in order, at most two blocks a worker ahead.

    `start(*start_arguments)` runs once in every worker. `workers` 0: one per core.

    Raises:
        DataError: a worker was killed.
    """
    workers = workers or cores()
    waiting: deque[tuple[Block, Future[Result]]] = deque()
    context = multiprocessing.get_context("spawn")  # a fork would copy the threads' locks
    with ProcessPoolExecutor(workers, context, _start_worker, (start, start_arguments)) as pool:
        try:
            for block in blocks:
                waiting.append((block, pool.submit(work, block, *arguments)))
                if len(waiting) >= 2 * workers:
                    first, future = waiting.popleft()
                    yield first, future.result()
            while waiting:
                first, future = waiting.popleft()
                yield first, future.result()
        except BrokenProcessPool as error:
            raise DataError("a worker was killed (out of memory?): run again with fewer --workers to go on") from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _start_worker(start: Callable[..., None], arguments: tuple) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle; it ends the workers
    parent = os.getppid()

    def watch() -> None:  # a killed parent would leave its workers waiting for ever
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    start(*arguments)


def progress_in_bytes(total: int) -> Any:
    """Return a progress bar on standard error, none where that is no terminal.

    Raises:
        MissingExtraError: tqdm is not installed.
    """
    try:
        from tqdm import tqdm
    except ModuleNotFoundError as error:
        raise missing_extra("tqdm", "data") from error
    return tqdm(total=total, unit="B", unit_scale=True, unit_divisor=1024, disable=None)
