"""``python -m research_rl.train``: the command of `research_rl.training.train`."""

import sys

from research_rl.training.train import command

if __name__ == "__main__":
    sys.exit(command())
