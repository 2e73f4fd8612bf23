"""The viewer's page in a real browser, clicked through."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from research_rl.web.viewer_app import create_viewer
from research_rl.web.viewer_cache import Cache
from research_rl.web.viewer_store import state
from tests.browser import expect, needs_chromium
from tests.unit.test_viewer import HOSTILE, trajectory, write

pytestmark = needs_chromium

ICON = "data:,"  # the page's own, which is empty
LOADS = (  # what would load or run something if it were markup
    HOSTILE
    + """<iframe src="data:text/html,<script>alert(3)</script>"></iframe><img src="data:image/svg+xml,<svg onload=alert(4)>">"""
    + """<link rel="stylesheet" href="https://attacker.example/a.css"><style>@import "https://attacker.example/b.css";</style>"""
    + """<a href="javascript:alert(5)">x</a><svg onload="alert(6)"><base href="https://attacker.example/"> \u202eabc\u202c \x1b[2J"""
)
MARKUP = ", ".join(
    f"main {tag}" for tag in ("script", "img", "iframe", "link", "style", "base", "svg", "a[href^=javascript]", "a[href^=data]")
)
CONVERSATION = {
    "messages": [
        {"role": "system", "content": LOADS},
        {"role": "user", "content": LOADS},
        {"role": "assistant", "content": LOADS, "tool_calls": [{"id": "1", "function": {"name": LOADS, "arguments": {LOADS: LOADS}}}]},
        {"role": "tool", "tool_call_id": "1", "content": LOADS},
        {"role": "assistant", "content": LOADS},
    ],
    "metrics": {LOADS: 1.0}, "components": {f"rule/{LOADS}": 0.0}, "golden_answers": [LOADS],
    "data_source": LOADS, "type": LOADS, "split": LOADS,
}  # fmt: skip
DUMP = {
    "input": LOADS,
    "output": LOADS,
    "gts": [LOADS],
    "score": 1.0,
    "step": 1,
    "uid": LOADS,
    LOADS: 1.0,
    f"reward/rule/{LOADS}": 0.0,
}


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("view") / "first"
    tokens = [{"text": "<search>", "logprob": -0.01}, {"text": "policyword</search>", "logprob": -4.0}]
    sure = trajectory(1)
    sure["turns"][0] |= {"tokens": tokens, "text": "<search>policyword</search>"}
    records = [
        sure,
        trajectory(2, score=0.0),
        trajectory(3, HOSTILE, answer=HOSTILE),
        *(trajectory(4, f"question {n}") for n in range(60)),
    ]
    for turn in records[2]["turns"]:
        turn |= {"text": f"</search>{HOSTILE}", "observation": HOSTILE}
    write(run / "train" / "trajectories" / "1-h-1-00000.jsonl", records)
    write(
        run / "train" / "metrics-1.jsonl",
        [{"step": n, "data": {"training/search/score": n / 9, "a/b": -n}} for n in range(1, 10)],
    )
    alarm = {"step": 5, "rule": "entropy", "metric": "a/b", "value": -5, "threshold": 0, "action": "warn", "message": HOSTILE}
    write(run / "train" / "health.jsonl", [alarm])
    write(run.with_name("second") / "trajectories" / "1-h-1-00000.jsonl", [trajectory(9, score=0.5)])
    return run


@contextmanager
def served(caches: list[Cache]) -> Iterator[str]:
    """Serve the viewer of these caches for the duration of the block; give its address."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = uvicorn.Server(uvicorn.Config(create_viewer(caches, ["127.0.0.1"]), log_level="warning"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        while not (server.started and all(cache.filled for cache in caches)):
            time.sleep(0.02)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/"
        server.should_exit = True
        thread.join(10)


@contextmanager
def opened(browser: Any, address: str) -> Iterator[Any]:
    """Open the viewer; afterwards there was no error, no violation of its policy, no alert, and no request elsewhere."""
    context = browser.new_context(viewport={"width": 1200, "height": 800})
    page = context.new_page()
    told: list[str] = []
    page.on("pageerror", lambda error: told.append(str(error)))
    page.on("console", lambda message: told.append(message.text) if message.type in ("error", "warning") else None)
    page.on("dialog", lambda dialog: told.append(f"dialog {dialog.message}"))
    page.on("request", lambda request: None if request.url.startswith((address, ICON)) else told.append(request.url))
    page.goto(address)
    page.wait_for_selector("#list a")
    yield page
    context.close()
    assert told == []


@pytest.fixture(scope="module")
def address(run) -> Iterator[str]:
    with served([Cache(directory, run.parent / "cache") for directory in (run, run.with_name("second"))]) as url:
        yield url


@pytest.fixture
def page(browser, address) -> Iterator[Any]:
    with opened(browser, address) as page:
        yield page


def test_keys_go_through_the_list_and_past_its_first_page(page):
    for place in range(3):
        page.keyboard.press("j")
        expect(page.locator("#list a").nth(place)).to_have_attribute("aria-current", "")
    page.keyboard.press("k")
    expect(page.locator("#list a").nth(1)).to_have_attribute("aria-current", "")
    page.locator("#list a").nth(49).click()
    expect(page.locator("#detail h2")).to_have_text("question 46")
    page.keyboard.press("ArrowDown")
    expect(page.locator("#detail h2")).to_have_text("question 47")
    assert page.locator("#list a").count() == 63
    page.keyboard.press("?")
    assert page.locator("#keys").is_visible()
    page.keyboard.press("Escape")


def test_search_filter_and_a_link_to_the_same_state(page, browser):
    page.keyboard.press("/")
    page.keyboard.type("question 7")
    expect(page.locator("#count")).to_have_text("1 trajectory")
    page.keyboard.press("Escape")
    page.keyboard.press("j")
    page.wait_for_selector("#detail h2")
    again = browser.new_context().new_page()
    again.goto(page.url)
    again.wait_for_selector("#detail h2")
    assert again.locator("#detail h2").text_content() == "question 7"
    assert again.locator("#q").input_value() == "question 7"
    assert again.locator("#list a").count() == 1
    again.context.close()
    page.locator("#more-filters summary").click()
    page.get_by_text("Clear all").click()
    expect(page.locator("#count")).to_have_text("63 trajectories")
    page.locator("select[name=step]").select_option("2")
    expect(page.locator("#count")).to_have_text("1 trajectory")


def test_text_has_the_colour_of_who_wrote_it_and_hostile_text_is_text(page):
    page.locator("#list a").nth(2).click()
    page.wait_for_selector("#detail [data-author=observation]")
    authors = page.locator("#detail [data-author]").evaluate_all(
        "nodes => nodes.map(node => [node.dataset.author, node.textContent])"
    )
    shown = HOSTILE.replace("\ud800", "\ufffd").replace("\0", "⟨U+0000⟩")
    assert [author for author, _ in authors] == ["policy", "observation"] * 2
    assert authors[0][1].replace("\ud800", "\ufffd") == f"</search>{shown}"
    assert page.locator("#detail script, #detail img, #list img, #list script").count() == 0
    colours = page.locator("#detail [data-author]").evaluate_all(
        "nodes => nodes.map(node => getComputedStyle(node).backgroundColor)"
    )
    assert colours[0] == colours[2] != colours[1]


def test_tokens_are_shaded_by_their_log_probability(page):
    page.locator("#list a").nth(0).click()
    page.wait_for_selector("#detail [data-author=policy] span")
    shades = "nodes => nodes.map(node => Number(node.style.backgroundColor.match(/[\\d.]+(?=\\)$)/)[0]))"
    sure, unsure = page.locator("#detail [data-author=policy] span").evaluate_all(shades)
    assert sure < 0.05 < 0.5 < unsure
    page.get_by_text("Log-probabilities").click()
    expect(page.locator("#detail [data-author=policy] span")).to_have_count(0)
    assert "policyword" in page.locator("#detail [data-author=policy]").nth(0).text_content()


def test_the_same_question_stands_side_by_side_and_is_exported(page):
    page.locator("#list a").nth(0).click()
    page.wait_for_selector("#compare:enabled")
    options = page.locator("#compare option").all_text_contents()
    assert len(options) == 3
    assert "step 2" in options[1]
    assert "second" in options[2]
    page.locator("#compare").select_option(index=2)
    page.wait_for_selector(".sides")
    assert page.locator(".sides > section").count() == 2
    assert "step 9" in page.locator(".sides > section").nth(1).text_content()
    with page.expect_download() as download:
        page.get_by_text("Export").click()
    assert "policyword" in Path(download.value.path()).read_text()


def test_curves_show_alarms_and_keep_their_choice_in_the_address(page):
    page.keyboard.press("v")
    page.wait_for_selector("#plots figure .alarm", state="attached")
    assert page.locator("#plots figcaption").all_text_contents() == ["training/search/score"]
    assert "entropy" in page.locator("#alarms li").text_content()
    page.locator("#choice summary").click()
    page.get_by_label("a/b", exact=True).check()  # the plot that appears is labelled "a/b by step"
    expect(page.locator("#plots figure")).to_have_count(2)
    page.reload()
    expect(page.locator("#plots figure")).to_have_count(2)
    assert "a%2Fb" in page.url


def test_a_run_that_is_still_training_is_followed(page, run):
    page.locator("#run").select_option("1")
    expect(page.locator("#count")).to_have_text("1 trajectory")
    write(run.with_name("second") / "trajectories" / "1-h-1-00000.jsonl", [trajectory(10, "a new one")], "a")
    expect(page.locator("#list a")).to_have_count(2, timeout=20_000)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_narrow_screen_shows_the_list_or_a_trajectory(browser, address, scheme):
    context = browser.new_context(viewport={"width": 400, "height": 800}, color_scheme=scheme)
    page = context.new_page()
    page.goto(address)
    page.locator("#list a").nth(1).click()
    page.wait_for_selector("#detail [data-author=policy]")
    assert not page.locator("#list").is_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    page.get_by_text("← List").click()
    page.wait_for_selector("#list a", state="visible")
    luminance = page.evaluate(
        "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).reduce((sum, part) => sum + Number(part), 0)"
    )
    assert (luminance > 380) == (scheme == "light")
    context.close()


@pytest.mark.parametrize("row", [CONVERSATION, DUMP], ids=["conversation", "verl"])
def test_nothing_in_a_recording_is_run_or_loaded(browser, tmp_path, row):
    recording = write(tmp_path / "1.jsonl", [row, {**row, "id": "again"}])
    cache = Cache(recording, tmp_path / "cache")
    with served([cache]) as url, opened(browser, url) as page:
        assert state(cache)["damaged"] == 0
        page.locator("#list a").nth(0).click()
        page.wait_for_selector("#detail [data-author]")
        page.locator("#more-filters summary").click()
        page.wait_for_selector("select[name=rule] option", state="attached")
        said = page.locator("#detail [data-author]").nth(0).text_content()
        assert "<script>alert(1)</script>" in said
        assert "⟨U+202E⟩abc⟨U+202C⟩ ⟨U+001B⟩[2J" in said
        assert page.locator(MARKUP).count() == 0
        with page.expect_download() as download:
            page.get_by_text("Export").click()
        download.value.save_as(tmp_path / "exported.html")
    exported, requests = browser.new_page(), []
    exported.on("request", lambda request: requests.append(request.url))
    exported.goto((tmp_path / "exported.html").as_uri())
    assert "⟨U+202E⟩abc" in exported.locator(".trajectory").last.text_content()
    assert exported.locator("script, img, iframe, link, base, svg, a").count() == 0
    assert requests == [(tmp_path / "exported.html").as_uri()]
    exported.close()


def test_of_a_response_of_verl_nobody_is_said_to_be_the_author(browser, tmp_path):
    rows = [
        {"input": f"user\n{question}\nassistant\n", "output": "policy and passage", "gts": ["Bob"], "score": 1.0, "step": 1}
        for question in ("Who?", "Where?")
    ]
    with served([Cache(write(tmp_path / "1.jsonl", rows), tmp_path / "cache")]) as url, opened(browser, url) as page:
        page.locator("#list a").nth(0).click()
        expect(page.locator("#detail h2")).to_have_text("Who?")
        assert page.locator("#detail [data-author]").evaluate_all("nodes => nodes.map(node => node.dataset.author)") == [
            "unknown"
        ]
        assert page.locator("#detail .turn.policy, #detail .turn.observation").count() == 0
        assert "answer" not in page.locator("#detail .facts").nth(1).text_content()
