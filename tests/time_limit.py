"""A limit for code whose time must not grow with the square of its input."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator


@contextlib.contextmanager
def seconds(most: float) -> Iterator[None]:
    """Raise TimeoutError in the block once it has taken `most` seconds; on Unix, in the main thread."""

    def late(*_: object) -> None:
        raise TimeoutError(f"not done after {most} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, most)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
