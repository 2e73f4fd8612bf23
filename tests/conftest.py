"""Fixtures shared by all tests."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# several libraries in one process bring an OpenMP of their own, whose waiting threads take each other's cores
os.environ.setdefault("OMP_NUM_THREADS", "1")

from hypothesis import settings

# how long an example takes says something about the machine only
settings.register_profile("any machine", deadline=None)
settings.load_profile("any machine")
