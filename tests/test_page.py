"""The explorer page in a real browser. Needs gradio, playwright and a Chromium; skipped where one is absent."""

import json
import shutil

import pytest

from inversedmixup.explore.explorer import Explorer
from inversedmixup.gate import REASONS, GateConfig
from inversedmixup.schema import Example
from test_run_report import HOSTILE, make_row
from tiny import LABELS, SENTENCES, make_pair

pytest.importorskip("gradio", reason="gradio is not installed")
sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")

WAIT = 20_000  # milliseconds; generous, as it only bounds a failure
NAME = """element => {
  const box = element.labels && element.labels.length ? element.labels[0].innerText : '';
  const by = element.getAttribute('aria-labelledby');
  const other = by ? document.getElementById(by)?.innerText : '';
  return (element.getAttribute('aria-label') || other || box || element.innerText || element.title || '').trim();
}"""


@pytest.fixture(scope="module")
def rows():
    return [
        make_row(at, text=text, label="refund", parents=["0", "18"], intruded=at % 2 == 0, label_probs={"refund": 1.0})
        for at, text in enumerate([*HOSTILE, "an ordinary sentence"])
    ]


@pytest.fixture(scope="module")
def url(tiny_encoder, tiny_llm, rows):
    from inversedmixup.explore.page import launch

    labelled = [*zip(SENTENCES, LABELS, strict=True), *((text, "refund") for text in HOSTILE)]
    examples = [Example(str(at), text, label) for at, (text, label) in enumerate(labelled)]
    gate = GateConfig(min_words=99)  # no candidate can pass
    page = launch(Explorer(make_pair(tiny_encoder, tiny_llm), examples, gate=gate, rows=rows, fluencies=[-3.0] * 20))
    yield page.local_url
    page.close()


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def visit(browser, url):
    """Opens the page as a new visitor; a dialog, or a request to elsewhere, is a failure."""
    contexts, wrong = [], []

    def asked(request):
        if not request.url.startswith((url, "data:", "blob:")):
            wrong.append(request.url)

    def open_page():
        context = browser.new_context()
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(WAIT)
        page.on("dialog", lambda dialog: (wrong.append(dialog.message), dialog.dismiss()))
        page.on("request", asked)
        page.goto(url)
        page.get_by_role("button", name="Write the strip").wait_for()
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert wrong == []


def current(page):
    return page.locator("#points [aria-current=true]")


def write_strip(page, first, second):
    for name, text in (("first", first), ("second", second)):
        page.locator(f"#{name}-sentence input").fill(text)
        page.locator(f"#{name}-sentence input").press("Enter")
    page.get_by_role("button", name="Write the strip").click()
    page.get_by_text("Written.", exact=True).wait_for()


def open_rows(page):
    page.get_by_role("tab", name="Rows").click()
    page.locator("#rows tr[data-row]").first.wait_for()


def test_dragging_lambda_shows_the_text_written_there(visit):
    page = visit()
    write_strip(page, SENTENCES[0], SENTENCES[7])
    strip = page.locator("#strip tr[data-lam]")
    assert strip.count() == 21
    slider = page.get_by_role("slider")
    box = slider.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] - 1, box["y"] + box["height"] / 2)
    page.mouse.up()
    page.wait_for_function("document.querySelector('#points [aria-current=true]').dataset.lam === '1.0'")
    assert current(page).locator(".text").inner_text() == strip.first.locator("td").nth(3).inner_text()
    slider.press("ArrowLeft")
    page.wait_for_function("document.querySelector('#points [aria-current=true]').dataset.lam === '0.95'")
    assert current(page).count() == 1
    assert page.locator("#strip tr[aria-current=true]").get_attribute("data-lam") == "0.95"
    assert page.locator("#map g[aria-current=true]").get_attribute("data-lam") == "0.95"


def test_the_map_changes_with_its_kind_and_says_so(visit):
    pytest.importorskip("umap", reason="umap-learn is not installed (make test-extras)")
    page = visit()
    write_strip(page, SENTENCES[0], SENTENCES[7])
    before = page.locator("#map").inner_html()
    page.get_by_role("radio", name="UMAP").check()
    page.get_by_text("Drawing the map with UMAP").wait_for()
    page.get_by_text("Map drawn with UMAP.").wait_for(timeout=180_000)  # the first one is compiled
    assert page.locator("#map").inner_html() != before
    assert page.locator("#map g[aria-current=true]").count() == 1


def test_typed_sentences_candidates_and_a_refused_sentence(visit):
    page = visit()
    write_strip(page, HOSTILE[0], "بيت")
    page.get_by_role("button", name="Draw candidates").click()
    page.locator("#candidates tr").nth(6).wait_for()
    found = page.locator("#candidates td.gate").all_inner_texts()
    written = page.locator("#candidates td:nth-child(2)").all_inner_texts()
    reasons = ["empty" if text == "(nothing)" else "too_short" for text in written]
    assert found == [f"✗ {reason.replace('_', ' ')}\n{REASONS[reason]}" for reason in reasons]
    assert "too_short" in reasons
    page.locator("#first-sentence input").fill("x" * 2001)
    page.locator("#first-sentence input").press("Enter")
    page.get_by_role("button", name="Write the strip").click()
    page.get_by_text("the first sentence has 2001 characters").wait_for()


def test_curated_rows_are_what_the_exported_file_holds(visit, rows, tmp_path):
    page = visit()
    open_rows(page)
    page.get_by_role("button", name="reject aug-0").click()
    page.get_by_text("1 changed by you.").wait_for()
    page.get_by_label("label of aug-1", exact=True).select_option("account")
    page.get_by_text("2 changed by you.").wait_for()
    page.get_by_role("button", name="Export the curated set").click()
    with page.expect_download() as download:
        page.locator("#saved a").first.click()
    download.value.save_as(tmp_path / "curated.jsonl")
    written = [json.loads(line) for line in (tmp_path / "curated.jsonl").read_text(encoding="utf-8").splitlines()]
    wanted = [dict(vars(row)) for row in rows[1:]]
    wanted[0] |= {"label": "account", "label_probs": {"account": 1.0, "delivery": 0.0, "refund": 0.0}}
    assert written == wanted


def test_hostile_text_is_shown_as_text(visit):
    page = visit()
    open_rows(page)
    shown = page.locator("#rows .text").all_inner_texts()
    assert shown[: len(HOSTILE)] == HOSTILE
    assert page.locator("#rows script, #rows img, #rows b, #map script").count() == 0
    assert page.locator("#rows .text").nth(2).evaluate("e => getComputedStyle(e).direction") == "rtl"


def test_a_cell_of_the_heat_map_shows_its_rows(visit):
    page = visit()
    open_rows(page)
    page.get_by_role("button", name="delivery × refund").press("Enter")
    page.wait_for_function("document.querySelector('#pair input').value === 'delivery × refund'")
    page.locator("#words textarea, #words input").fill("ordinary")
    page.get_by_text("1 of 7 rows").wait_for()


def test_two_visitors_do_not_mix_their_state(visit):
    one, two = visit(), visit()
    for page in (one, two):
        open_rows(page)
    one.get_by_role("button", name="reject aug-3").click()
    one.get_by_text("1 changed by you.").wait_for()
    two.get_by_role("button", name="reject aug-4").click()
    two.get_by_text("1 changed by you.").wait_for()
    assert one.get_by_role("button", name="reject aug-3").get_attribute("aria-pressed") == "true"
    assert one.get_by_role("button", name="reject aug-4").get_attribute("aria-pressed") == "false"
    assert two.get_by_role("button", name="reject aug-3").get_attribute("aria-pressed") == "false"


def test_every_control_has_a_name_and_the_keyboard_curates(visit):
    page = visit()
    for open_tab in (lambda page: None, open_rows):
        open_tab(page)
        for control in page.locator("button:visible, input:visible, select:visible, textarea:visible, a:visible").all():
            assert control.evaluate(NAME), control.evaluate("e => e.outerHTML")
    page.get_by_role("button", name="reject aug-2").focus()
    page.keyboard.press("Enter")
    page.get_by_text("1 changed by you.").wait_for()
    page.wait_for_function("document.activeElement.dataset.key === 'reject aug-2'")
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Enter")
    page.get_by_text("0 changed by you.").wait_for()


def test_writing_can_be_stopped(visit):
    page = visit()
    page.get_by_role("button", name="Write the strip").click()
    page.get_by_role("button", name="Stop").click()
    page.get_by_text("Stopped.").wait_for()


def test_a_taken_port_is_refused_with_the_remedy(url, tiny_encoder, tiny_llm):
    from urllib.parse import urlparse

    from inversedmixup.errors import InputError
    from inversedmixup.explore.page import launch

    explorer = Explorer(make_pair(tiny_encoder, tiny_llm), [Example("0", "x", "a"), Example("1", "y", "b")])
    with pytest.raises(InputError, match="choose another --port"):
        launch(explorer, port=urlparse(url).port)
    with pytest.raises(InputError, match="choose another --port"):
        launch(explorer, port=70_000)
