"""The page at `/` to try a search. One file, nothing from elsewhere; its policy lets only its own script and style run, named by hash."""

from __future__ import annotations

import base64
import hashlib
import re
from functools import cache
from pathlib import Path

from fastapi.responses import HTMLResponse


@cache
def search_page(tokens: bool) -> HTMLResponse:
    """Return the page; with `tokens` it asks for one."""
    html = Path(__file__).with_name("search.html").read_text(encoding="utf-8")
    script, style = (_source(html, tag) for tag in ("script", "style"))
    policy = (
        f"default-src 'none'; script-src {script}; style-src {style}; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    headers = {"content-security-policy": policy, "x-content-type-options": "nosniff", "referrer-policy": "no-referrer"}
    return HTMLResponse(html.replace("<body>", f'<body data-tokens="{"yes" if tokens else "no"}">'), headers=headers)


def _source(html: str, tag: str) -> str:
    found = re.search(f"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
    assert found
    return f"'sha256-{base64.b64encode(hashlib.sha256(found[1].encode()).digest()).decode()}'"
