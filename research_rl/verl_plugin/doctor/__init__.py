"""``research-rl doctor``: all that can be known to be wrong with a set-up before anything is started.

Each file holds the checks of one theme; `examine` says which are made, by the command and at the start of every training.
"""
