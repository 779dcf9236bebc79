"""The page in a real Chromium: by mouse, by keyboard alone, on a narrow screen, with titles that are no markup."""

import shutil

import pytest

from serving.recommender import Recommender
from tests.test_server import encoder, make_bundle, serving, shop  # noqa: F401 - fixtures among them
from tests.test_serving import name_of

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
playwright = pytest.importorskip("playwright.sync_api", reason="needs the package playwright")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
MARKUP = '<img src=x onerror="document.title=1"><b>bold</b>'


@pytest.fixture(scope="module")
def running(shop, tmp_path_factory):  # noqa: F811
    recommender = Recommender.open(make_bundle(shop, tmp_path_factory.mktemp("page") / "bundle"))
    recommender.add_items([("M1", {"title": MARKUP, "brand": "Maker 1"})])
    with serving(recommender) as found:
        yield found


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        try:
            browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        except playwright.Error as error:  # of this machine, and no fault of the page
            pytest.skip(f"Chromium cannot be started: {str(error).splitlines()[0]}")
        yield browser
        browser.close()


@pytest.fixture(params=["light", "dark"])
def page(request, running, browser):
    """The page, opened; what it logs as an error, and what it asks of others, fails the test."""

    def heard(message) -> None:
        if message.type == "error" and "Failed to load resource" not in message.text:  # which the page says itself
            faults.append(message.text)

    context = browser.new_context(color_scheme=request.param, viewport={"width": 1280, "height": 900})
    address = f"http://127.0.0.1:{running.port}/"
    page, faults, elsewhere = context.new_page(), [], []
    page.set_default_timeout(10_000)
    page.on("console", heard)
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("request", lambda asked: asked.url.startswith(address) or elsewhere.append(asked.url))
    page.goto(address)
    playwright.expect(page.locator("#bundle")).to_have_text("80 items, ranked by blend")
    yield page
    assert not faults and not elsewhere
    context.close()


def titles(page, selector: str, count: int) -> list[str]:
    """The first lines of a list that has so many items."""
    rows = page.locator(f"{selector} > li")
    playwright.expect(rows).to_have_count(count)
    return rows.all_inner_texts()


def test_a_history_is_built_and_recommended_from(page, running):
    page.fill("#words", "thing 1")
    assert "Thing 1" in titles(page, "#found", 8)[0]
    page.get_by_label("Add: Thing 1", exact=True).first.click()
    page.fill("#words", "B003")
    page.get_by_label("Add: Thing 3", exact=True).first.click()
    titles(page, "#history", 2)
    expected = running.recommend(["B001", "B003"], explain=True).json()["items"]
    for row, item in zip(titles(page, "#recommended", 10), expected, strict=True):
        assert item["title"] in row and f"{100 * item['probability']:.1f}"[:-1] in row
        assert all(reason["title"] in row for reason in item["because"])
    assert "Thing 3" in titles(page, "#rule-lists > :nth-child(3) > ol", 2)[0]
    titles(page, "#rule-lists > :nth-child(1) > ol", 10), titles(page, "#rule-lists > :nth-child(2) > ol", 10)
    page.select_option("#k", "5")
    titles(page, "#recommended", 5)
    page.uncheck("#exclude")
    shown = running.recommend(["B001", "B003"], k=5, exclude_history=False).json()["items"]
    playwright.expect(page.locator("#recommended > li").first).to_contain_text(shown[0]["title"])
    page.get_by_label("Remove: Thing 1", exact=True).click()
    assert len(titles(page, "#history", 1)) == 1
    page.click("#clear")
    assert "Needs a history" in titles(page, "#recommended", 1)[0]


def test_an_item_has_codes_and_neighbours(page, running):
    page.fill("#words", "B005")
    page.get_by_label("Details: Thing 5", exact=True).first.click()
    codes = running.get("/item", id="B005").json()["codes"]
    playwright.expect(page.locator("#facts")).to_contain_text(" · ".join(map(str, codes)))
    near = running.get("/similar", id="B005", k=8).json()["items"]
    assert near[0]["title"] in titles(page, "#neighbours", 8)[0]
    page.keyboard.press("Escape")
    playwright.expect(page.locator("#details")).to_be_hidden()


def test_titles_are_text_and_no_markup(page):
    page.fill("#words", "<img")
    assert MARKUP in titles(page, "#found", 1)[0]
    page.locator("#found button").first.click()
    assert MARKUP in titles(page, "#history", 1)[0]
    page.locator("#found button").nth(1).click()
    playwright.expect(page.locator("#details-title")).to_have_text(MARKUP)
    assert page.locator("main img, main b, dialog img").count() == 0 and page.title() == "RecGPT: recommendations"


def test_an_item_that_the_catalog_lacks(page):
    page.fill("#words", "Thing 7 of another shop")
    titles(page, "#found", 1)
    page.click("#add-text")
    assert "Thing 7 of another shop" in titles(page, "#history", 1)[0]
    titles(page, "#recommended", 10)
    playwright.expect(page.locator("#rule-lists > :nth-child(3) > ol")).to_contain_text("Nothing")  # it waits


def test_a_list_that_comes_late_leaves_the_focus_where_it_is(page):
    page.fill("#words", name_of(9))
    titles(page, "#found", 1)
    page.get_by_label("Add: Thing 9", exact=True).focus()
    with page.expect_response(lambda response: "/search" in response.url):
        page.evaluate("document.querySelector('#words').dispatchEvent(new Event('input', { bubbles: true }))")
    page.wait_for_load_state("networkidle")
    playwright.expect(page.get_by_label("Add: Thing 9", exact=True)).to_be_focused()


def test_by_keyboard_alone(page):
    """From the top: search, add the first that is found, remove it again; focus is seen, and is never lost."""
    for _ in range(2):  # past the link to /docs
        page.keyboard.press("Tab")
    page.keyboard.type(name_of(9))
    titles(page, "#found", 1)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.getAttribute('aria-label')") == "Add: Thing 9"
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.keyboard.press("Enter")
    titles(page, "#recommended", 10)
    page.get_by_label("Remove: Thing 9", exact=True).focus()
    page.keyboard.press("Space")
    assert page.evaluate("document.activeElement.id") == "words"
    unnamed = "[...document.querySelectorAll('button, input, select')].filter(e => !e.hidden && !e.labels?.length"
    assert page.evaluate(f"{unnamed} && !e.textContent && !e.ariaLabel).length") == 0


@pytest.mark.parametrize("width", [320, 360, 768])
def test_narrow_screens_need_no_scrolling_to_the_side(page, width):
    page.set_viewport_size({"width": width, "height": 700})
    page.fill("#words", "thing")
    page.locator("#found button").first.click()
    titles(page, "#recommended", 10)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.locator("#found button").nth(1).click()
    titles(page, "#neighbours", 8)
    assert page.evaluate("document.querySelector('dialog').getBoundingClientRect().right") <= width


def test_a_fault_of_the_server_is_said(page):
    page.fill("#words", "B007")  # which has no text
    page.locator("#found button").nth(1).click()
    assert "has no text" in titles(page, "#neighbours", 1)[0]
    page.keyboard.press("Escape")
    page.route("**/recommend", lambda route: route.abort())
    page.locator("#found button").first.click()
    playwright.expect(page.locator("#status.fault")).to_be_visible()
