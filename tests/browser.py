"""A real browser for the tests of pages; where there is none, they are skipped with the reason."""

from __future__ import annotations

import shutil

import pytest

sync_api = pytest.importorskip("playwright.sync_api", reason="pages are tried out by Playwright: pip install playwright")
expect = sync_api.expect  # pages forbid eval, which wait_for_function needs
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on PATH")
