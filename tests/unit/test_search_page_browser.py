"""The service's page at `/` in a real browser."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest

from rag_serving.retrievers import DummyRetriever
from tests.browser import expect, needs_chromium
from tests.servers import in_thread
from tests.unit.test_lookup import write

pytestmark = needs_chromium

HOSTILE = "<img src=http://elsewhere.example/x onerror=alert(1)><script>alert(2)</script>"
PASSAGES = [
    ("rhine-0", "Rhine\nThe Rhine is a river in Europe."),
    ("rhine-1", "Rhine\nIt ends in the North Sea."),
    ("hostile", f'"{HOSTILE}"\n{HOSTILE} a river, and a word without an end: {"x" * 300}'),
]


@pytest.fixture(scope="module")
def address(tmp_path_factory) -> Iterator[str]:
    corpus = write(tmp_path_factory.mktemp("corpus"), [{"id": name, "contents": contents} for name, contents in PASSAGES])
    with in_thread(DummyRetriever(PASSAGES), corpus=corpus) as url:
        yield url + "/"


@pytest.fixture(scope="module")
def guarded() -> Iterator[str]:
    with in_thread(DummyRetriever(PASSAGES), tokens=["sesame"]) as url:
        yield url + "/"


@pytest.fixture
def opened(browser) -> Iterator[Any]:
    """Open an address with options of the browser; in the end, no error, no violation of the policy, no alert, no request elsewhere."""
    told: list[str] = []
    contexts = []

    def open_(address: str, refused: int | None = None, **options: Any) -> Any:
        contexts.append(browser.new_context(**options))
        page = contexts[-1].new_page()
        page.on("pageerror", lambda error: told.append(str(error)))
        page.on(
            "console",
            lambda message: (
                told.append(message.text) if message.type in ("error", "warning") and f"{refused}" not in message.text else None
            ),
        )
        page.on("dialog", lambda dialog: told.append(f"dialog {dialog.message}"))
        page.on("request", lambda request: None if request.url.startswith(address) else told.append(request.url))
        page.goto(address)
        return page

    yield open_
    for context in contexts:
        context.close()
    assert told == []


def search(page: Any, query: str) -> None:
    page.locator("#query").fill(query)
    page.keyboard.press("Enter")


def test_a_search_shows_passages_timings_and_the_index(opened, address):
    page = opened(address)
    expect(page.locator("#state")).to_have_text("engine bm25 · index test-index · 3 passages")
    search(page, "the rhine")
    timings = ", ".join(rf"{name} \d+\.\d ms" for name in ("engine", "queue", "service", "with the network"))
    expect(page.locator("#told")).to_have_text(re.compile(f"^1 passage · not cached · {timings} · index test-index$"))
    assert page.locator("#hits li h2").all_text_contents() == ["1. Rhine"]
    search(page, "the rhine")
    expect(page.locator("#told")).to_contain_text("from the cache")
    page.locator("#k").fill("1")
    search(page, "river")
    expect(page.locator("#hits li")).to_have_count(1)


def test_a_document_is_read_on_to_its_end(opened, address):
    page = opened(address)
    search(page, "the rhine")
    page.get_by_text("read on").click()
    expect(page.locator("#hits p.text")).to_contain_text("It ends in the North Sea.")
    page.get_by_text("read on").click()
    expect(page.get_by_text("end of the document")).to_be_disabled()


def test_a_passage_is_text_and_asks_nobody_for_anything(opened, address):
    page = opened(address)
    search(page, "river")
    expect(page.locator("#hits li")).to_have_count(2)
    assert page.locator("#hits li h2").nth(1).text_content() == f"2. {HOSTILE}"
    assert page.locator("#hits img, #hits script").count() == 0


def test_a_refusal_is_told_in_the_services_words(opened, address):
    page = opened(address, refused=400)
    page.locator("#k").fill("100000")
    search(page, "river")
    expect(page.locator("#told.failed")).to_contain_text("max_top_k")
    expect(page.locator("#go")).to_be_enabled()


def test_a_service_that_wants_a_token_is_given_it_from_the_page(opened, guarded):
    page = opened(guarded, refused=401)
    search(page, "river")
    expect(page.locator("#told.failed")).to_contain_text("401")
    page.locator("#token").fill("sesame")
    search(page, "river")
    expect(page.locator("#hits li")).to_have_count(2)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_narrow_screen_needs_no_sideways_scrolling_and_text_can_be_read_in_both_themes(opened, address, scheme):
    page = opened(address, viewport={"width": 400, "height": 800}, color_scheme=scheme)
    search(page, "river")
    expect(page.locator("#hits li")).to_have_count(2)
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    light = (
        "node => (getComputedStyle(node)[{}].match(/[\\d.]+/g).slice(0, 3).reduce((sum, part) => sum + Number(part), 0)) / 3"
    )
    background = page.locator("body").evaluate(light.format("'backgroundColor'"))
    assert (background > 127) == (scheme == "light")
    for node in page.locator("#state, #told, #hits h2, #hits p, #hits button, label, #query").all():
        assert abs(node.evaluate(light.format("'color'")) - background) > 90
