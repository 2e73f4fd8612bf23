"""What the main programs of quickstart, rehearsal and experiment share: a user's mistake is told in a line, and no process is left."""

from __future__ import annotations

from collections.abc import Callable

from rich.console import Console

from rag_serving import IndexingError
from research_rl.errors import ConfigError, DataError, GenerationError, MissingExtraError, RetrievalError
from research_rl.training.processes import leaving_none

TOLD = (ConfigError, DataError, GenerationError, IndexingError, MissingExtraError, RetrievalError)


def run_program(name: str, run: Callable[[], int], console: Console, interrupted: str) -> int:
    """Run a program and return its exit code: 1 after one of our errors, 130 after Ctrl-C. `interrupted`: what to do after that."""
    with leaving_none():
        try:
            return run()
        except TOLD as error:
            console.print(f"{name}: {error}", style="red", highlight=False, markup=False)
            return 1
        except KeyboardInterrupt:
            console.print(f"\nInterrupted. {interrupted}", highlight=False, markup=False)
            return 130
