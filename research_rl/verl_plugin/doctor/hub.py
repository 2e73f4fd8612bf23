"""Whether the Hugging Face hub can be asked, and where to look for a model if it cannot."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

import httpx
from huggingface_hub import constants

_WAIT_S = 2.0  # in which the hub has to answer


class Hub:
    """The hub, asked at most once, and only for a model that is not on this machine."""

    @contextmanager
    def only_here(self, path: str) -> Iterator[bool]:
        """Yield True if a model must be looked for on this machine only: its hub does not answer, and would be asked again for minutes."""
        if Path(path).exists() or self._answers():  # for a model that is here, the hub is asked for code that it names there
            yield False
            return
        # `local_files_only` alone does not keep huggingface_hub from asking for what it puts into its user agent, for 3 s
        before, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True
        try:
            yield True
        finally:
            constants.HF_HUB_OFFLINE = before

    def ask_beforehand(self, path: str) -> None:
        """Ask, without waiting for the answer, if a model is not on this machine."""
        if not Path(path).exists():
            _ = self._answers

    @cached_property
    def _answers(self) -> Callable[[], bool]:
        if constants.HF_HUB_OFFLINE:
            return lambda: False
        pool = ThreadPoolExecutor(1, thread_name_prefix="hub")
        answer = pool.submit(_answers)
        pool.shutdown(wait=False)
        return answer.result


def _answers() -> bool:
    try:
        httpx.head(constants.ENDPOINT, timeout=_WAIT_S)
    except httpx.HTTPError:
        return False
    return True
