"""``python -m research_rl.train``, which is ``research-rl train``: the command of `research_rl.training.train`."""

import sys

from research_rl.training.train import command as main
from research_rl.training.train import make_parser

__all__ = ["main", "make_parser"]

if __name__ == "__main__":
    sys.exit(main())
