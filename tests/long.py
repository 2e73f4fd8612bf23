"""The mark of tests that take minutes each, and run only with `RESEARCH_RL_LONG=1`."""

from __future__ import annotations

import os

import pytest

LONG = bool(os.environ.get("RESEARCH_RL_LONG"))
long = pytest.mark.skipif(not LONG, reason="takes minutes: RESEARCH_RL_LONG=1 runs it, too")
