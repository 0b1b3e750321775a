"""The rendered book in a real browser: every page is whole, readable by all, and asks no other host for anything."""

import re
import threading
from dataclasses import dataclass, field
from functools import cache, partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urldefrag

import pytest
import yaml

REPOSITORY = Path(__file__).parents[2]
CHAPTERS = sorted(yaml.safe_load((REPOSITORY / "workflow/test.yaml").read_text())["chapters"])
PAGES = [
    "search",
    "genindex",
    *(f"book/{name}" for name in ("intro", "weights", "cluster", "scale", "records", "faults", "references")),
]
PAGES += [f"notebooks/{name}" for name in CHAPTERS]
WIDE, NARROW = {"width": 1280, "height": 900}, {"width": 390, "height": 844}


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *arguments) -> None:
        pass


@dataclass
class Visit:
    """A page that stays open, and what the browser said and asked for while it loaded."""

    page: object
    status: int = 0
    said: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def address(workflow):
    """The rendered book's address, on a port of its own."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(workflow.html)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def visit(chromium, address):
    """Opens a page of the book, by name, once for all tests."""
    context = chromium.new_context(viewport=WIDE, color_scheme="light")

    @cache
    def open_page(name: str) -> Visit:
        visit = Visit(context.new_page())
        visit.page.on("console", lambda message: visit.said.append(message.text) if message.type == "error" else None)
        visit.page.on("pageerror", lambda error: visit.said.append(str(error)))
        visit.page.on("request", lambda request: visit.asked.append(request.url))
        visit.status = visit.page.goto(f"{address}{name}.html", wait_until="load").status
        visit.page.evaluate("window.MathJax?.startup?.promise")
        visit.page.add_style_tag(content="* { transition: none !important }")  # colours are judged when they stand
        return visit

    yield open_page
    context.close()


@cache
def anchors(file: Path) -> set[str]:
    return set(re.findall(r'\bid="([^"]+)"', file.read_text(encoding="utf-8")))


@pytest.mark.parametrize("name", PAGES)
def test_a_page_loads_without_an_error_and_from_its_own_host_alone(visit, address, name):
    found = visit(name)
    assert found.status == 200
    assert found.said == []
    assert [url for url in found.asked if not url.startswith((address, "data:", "blob:"))] == []
    assert found.page.evaluate("[...document.images].filter(one => !one.naturalWidth).map(one => one.src)") == []
    silent = "[...document.querySelectorAll('article img')].filter(one => !one.alt.trim()).map(one => one.src)"
    assert found.page.evaluate(silent) == []


@pytest.mark.parametrize("name", PAGES)
def test_every_link_within_the_book_leads_somewhere(workflow, visit, address, name):
    links = visit(name).page.evaluate("[...document.querySelectorAll('a[href]')].map(one => one.href)")
    broken = []
    for link in sorted(set(links)):
        url, anchor = urldefrag(link)
        if url.startswith(address):
            file = workflow.html / url.removeprefix(address).partition("?")[0]
            file = file / "index.html" if file.is_dir() else file
            if not file.is_file() or (anchor and file.suffix == ".html" and anchor not in anchors(file)):
                broken.append(link)
    assert broken == []


@pytest.mark.parametrize("name", [f"notebooks/{name}" for name in CHAPTERS])
def test_formulas_are_drawn(visit, name):
    page = visit(name).page
    assert page.locator(".math.notranslate:not(:has(mjx-container))").count() == 0
    assert page.locator("[data-mml-node=merror]").count() == 0


def test_some_chapter_has_formulas(visit):
    assert visit("notebooks/02_roulettes").page.locator("mjx-container").count() > 10


def test_a_slider_of_the_book_moves_its_picture(visit):
    page = visit("notebooks/explorer").page
    place = page.locator("div.interactive[data-drawn]").first
    place.scroll_into_view_if_needed()
    before = place.locator(".heatmaplayer image").first.get_attribute("href")
    box = place.locator(".slider-rail-touch-rect").bounding_box()
    page.mouse.click(box["x"] + 0.95 * box["width"], box["y"] + box["height"] / 2)
    picture = "div.interactive .heatmaplayer image"
    page.wait_for_function(f"before => document.querySelector('{picture}').getAttribute('href') !== before", arg=before)


@pytest.mark.parametrize("name", PAGES)
def test_a_narrow_screen_shows_a_page_without_moving_it_sideways(visit, name):
    page = visit(name).page
    page.set_viewport_size(NARROW)
    beyond = page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
    page.set_viewport_size(WIDE)
    assert beyond <= 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", PAGES)
def test_no_serious_fault_of_access(visit, name, scheme):
    """By the rules of axe-core. Code, which is coloured alike everywhere, is judged on one page, and of a table the
    first rows: all of them would take minutes."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
    page = visit(name).page
    page.emulate_media(color_scheme=scheme)
    page.wait_for_function(f"document.documentElement.dataset.theme === '{scheme}'")
    options = {"resultTypes": ["violations"]} | ({"runOnly": ["color-contrast"]} if scheme == "dark" else {})
    left_out = ["mjx-container", "tbody tr:nth-child(n+4)"] + (["pre"] if name != "notebooks/explorer" else [])
    found = axe.Axe().run(page, {"exclude": [[one] for one in left_out]}, options).response["violations"]
    page.emulate_media(color_scheme="light")
    serious = [one for one in found if one["impact"] in ("serious", "critical")]
    assert [(one["id"], [node["html"] for node in one["nodes"]][:3]) for one in serious] == []


def test_the_first_page_leads_to_the_introduction(chromium, address):
    page = chromium.new_page()
    page.goto(address)
    page.wait_for_url("**/book/intro.html")
    page.close()


def test_the_search_works_from_disk(chromium, workflow):
    page = chromium.new_page()
    page.goto(f"{(workflow.html / 'search.html').as_uri()}?q=lenstronomy")
    page.wait_for_selector("ul.search li a")
    assert page.locator("ul.search li a[href*='01_simulation']").count() > 0
    page.close()
