"""``python -m research_rl.train``, which is ``research-rl train``: the command of `research_rl.training.train`."""

import sys

from research_rl.training.train import command as main

__all__ = ["main"]

if __name__ == "__main__":
    sys.exit(main())
