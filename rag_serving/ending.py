"""The end of a server's process: a thread that hangs (a device, a dead network mount) is logged, and does not keep the process alive.

Python waits for all threads before it ends, and no thread can be ended from outside.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Sequence
from typing import Any, NoReturn

log = logging.getLogger("rag_serving")

LEFT_BEHIND = 1  # exit code of a process that ended without waiting for all of its threads
GRACE_S = 5.0  # seconds that threads have to end, once everything admitted was answered


class Ending:
    """Ends this process after SIGTERM or SIGINT. `told` is whether one came."""

    def __init__(self, drain_s: float, grace_s: float = GRACE_S) -> None:
        """`drain_s`: seconds for what was admitted, which uvicorn and then each index may take."""
        self._longest_s, self.grace_s, self.told = 2 * drain_s + 2 * grace_s, grace_s, False
        self._timers: list[threading.Timer] = []

    def listen(self) -> None:
        """Note the signals from now on, beside what handles them already. Call it in the main thread."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._beside(signal.getsignal(number)))

    def over(self) -> None:
        """The server has ended (and put the handlers of signals back), but its process may have more to do: do not end it any longer."""
        while self._timers:
            self._timers.pop().cancel()

    def _beside(self, handler: Any) -> Any:
        def handle(number: int, frame: Any) -> None:
            # the second signal means: at once
            self.end_within(self.grace_s if self.told else self._longest_s)
            self.told = True
            if callable(handler):
                handler(number, frame)

        return handle

    def end_within(self, seconds: float, code: int = LEFT_BEHIND) -> None:
        """End the process after this time, with this exit code, if it has not ended by itself."""
        timer = threading.Timer(seconds, self._overdue, (code,))
        timer.daemon = True
        self._timers.append(timer)
        timer.start()

    def end_after_main(self, seconds: float) -> None:
        """End the process this long after its main thread, should other threads keep it."""

        def wait() -> None:
            threading.main_thread().join()  # as long as it runs, the process has something to do
            time.sleep(seconds)
            self._overdue(LEFT_BEHIND)

        threading.Thread(target=wait, daemon=True).start()

    def _overdue(self, code: int) -> None:
        main = threading.main_thread()
        hanging = [f"thread {thread.name}" for thread in threading.enumerate() if thread is not main and not thread.daemon]
        self.leave(hanging, code)

    def leave(self, hanging: Sequence[str], code: int = LEFT_BEHIND) -> NoReturn:
        """Tell what hangs and end the process at once."""
        log.error("the process ends without waiting any longer for: %s", "; ".join(hanging) or "what it is doing")
        os._exit(code)
