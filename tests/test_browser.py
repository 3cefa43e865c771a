"""The built book in a browser, served on loopback: no error, no request elsewhere, filters, phone,
dark, axe.
"""

from __future__ import annotations

import functools
import http.server
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib
import pytest

from layerbook import paths
from layerbook.pages import build, markup
from layerbook.pages import papers as report_data

CHROMIUM = shutil.which("chromium") or "/usr/bin/chromium"
AXE = paths.DATA / "web" / "axe-core" / "axe.min.js"
ARGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync",
        "--no-first-run"]  # fmt: skip
WIDE, PHONE = {"width": 1440, "height": 900}, {"width": 390, "height": 844}
# rule -> the theme's element that breaks it; its icon font counts as a text that the label lacks
THEME_FAULTS = {"label-content-name-mismatch": ".theme-switch-button"}

pytestmark = pytest.mark.skipif(
    not Path(CHROMIUM).is_file(), reason="chromium is not installed (apt install chromium)"
)


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serve files without a line on stderr for each."""

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


# Chromium itself ends on the first page where a machine has no font at all, whatever the page
# holds: it is given those that come with matplotlib.
SHIPPED = Path(matplotlib.get_data_path()) / "fonts" / "ttf"


def fontconfig(folder: Path, fonts: Path) -> str:
    """A configuration file that knows the fonts of one folder only."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "fonts.conf"
    file.write_text(
        '<?xml version="1.0"?><!DOCTYPE fontconfig SYSTEM "fonts.dtd">'
        f"<fontconfig><dir>{fonts}</dir><cachedir>{folder / 'cache'}</cachedir></fontconfig>",
        encoding="utf-8",
    )
    return str(file)


@pytest.fixture(scope="session")
def site() -> Iterator[str]:
    if not report_data.load():
        pytest.skip("no record in results/ yet")
    try:
        html = build.build_book()
    except build.BookError as error:
        pytest.fail(str(error), pytrace=False)
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Quiet, directory=str(html))
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


# Of this module alone: while one Playwright runs, no other can be started in the same process.
@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with sync_api.sync_playwright() as play:
        fonts = fontconfig(tmp_path_factory.mktemp("fonts"), SHIPPED)
        browser = play.chromium.launch(
            executable_path=CHROMIUM, args=ARGS, env=os.environ | {"FONTCONFIG_FILE": fonts}
        )
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def contexts(browser: Any) -> dict[tuple[int, str], Any]:
    """One browser context per width and colour scheme, shared to save time."""
    return {
        (size["width"], scheme): browser.new_context(viewport=size, color_scheme=scheme)
        for size in (WIDE, PHONE)
        for scheme in ("light", "dark")
    }


@pytest.fixture
def visit(contexts: Any, site: str) -> Iterator[Any]:
    """Open a page; what went wrong on the way is collected in page.faults."""
    opened = []

    def open_page(name: str, viewport: dict[str, int] = WIDE, scheme: str = "light") -> Any:
        page = contexts[viewport["width"], scheme].new_page()
        opened.append(page)
        page.faults = []
        page.on("console", lambda m: page.faults.append(m.text) if m.type == "error" else None)
        page.on("pageerror", lambda e: page.faults.append(str(e)))
        page.on("requestfailed", lambda r: page.faults.append(f"failed: {r.url}"))
        page.on(
            "response",
            lambda r: page.faults.append(f"{r.status}: {r.url}") if r.status >= 400 else None,
        )
        page.on(
            "request",
            lambda r: None if r.url.startswith((site, "data:")) else page.faults.append(r.url),
        )
        page.goto(f"{site}/{name}", wait_until="load")
        return page

    yield open_page
    for page in opened:
        page.close()


def paper_pages() -> list[str]:
    return [f"papers/{p.slug}.html" for p in report_data.load()]


FIXED = ["index.html", "gallery.html", "scoreboard.html", "shelf.html", "guide/claims.html", "assets.html", "reference.html",
         "glossary.html", "bibliography.html", "404.html"]  # fmt: skip
# every paper's page is made by the same code; their content is checked in test_book
PAPER = paper_pages()[:1]


@pytest.mark.parametrize("name", FIXED + paper_pages())
def test_a_page_loads_clean_and_fits_a_phone(visit: Any, name: str) -> None:
    page = visit(name, PHONE)
    assert not page.faults
    width = page.evaluate("document.documentElement.scrollWidth")
    assert width <= PHONE["width"], f"{name} is {width} px wide on a phone of {PHONE['width']} px"


def test_equations_are_set_without_a_network(visit: Any) -> None:
    for name in PAPER:
        page = visit(name)
        page.wait_for_selector("mjx-container", timeout=10_000)
        assert not page.faults


def test_search_finds_a_paper(visit: Any) -> None:
    paper = report_data.load()[0]
    page = visit(f"search.html?q={max(paper.short.split(), key=len)}")
    page.wait_for_selector(f'#search-results a[href*="papers/{paper.slug}.html"]', timeout=10_000)
    assert not page.faults


def test_the_scoreboard_filters_and_remembers(visit: Any) -> None:
    page = visit("scoreboard.html")
    rows = page.locator(".lb-row:not(.lb-hidden)")
    everything = rows.count()
    assert everything == sum(len(p.card["claims"]) for p in report_data.load())
    page.select_option("[data-filter=kind]", "control")
    controls = rows.count()
    assert 0 < controls < everything
    assert rows.evaluate_all("rows => rows.every(r => r.dataset.kind === 'control')")
    assert page.locator(".lb-shown").inner_text() == f"{controls} of {everything} shown"
    page.reload()
    assert rows.count() == controls, "the address keeps the filter"
    page.select_option("[data-filter=kind]", "")
    page.fill("[data-filter=text]", "no such words anywhere")
    assert rows.count() == 0


@pytest.mark.parametrize("verdict", markup.VERDICTS)
def test_a_tile_of_the_front_page_leads_to_those_claims(visit: Any, verdict: str) -> None:
    page = visit("index.html")
    tile = page.locator(f".lb-tile.lb-{markup.css(verdict)}")
    number = int(tile.locator("b").inner_text())
    tile.click()
    page.wait_for_selector(".lb-shown:not(:empty)")
    assert page.locator(".lb-row:not(.lb-hidden)").count() == number


def test_the_scoreboard_sorts_by_exact_values(visit: Any) -> None:
    page = visit("scoreboard.html")
    script = """[...document.querySelectorAll('.lb-row')].map(row => row.children[3].querySelector('data')?.value)
        .filter(Boolean).map(Number)"""
    heading = page.get_by_role("button", name="Here")
    heading.click()
    up = page.evaluate(script)
    assert up == sorted(up)
    assert page.locator("th[aria-sort=ascending]").count() == 1
    heading.click()
    assert page.evaluate(script) == up[::-1]


def test_a_phone_sorts_by_menu(visit: Any) -> None:
    page = visit("scoreboard.html", PHONE)
    page.get_by_label("Sort by").select_option(label="Verdict")
    script = """[...document.querySelectorAll('.lb-row')].map(row =>
        Number(row.lastElementChild.querySelector('[data-sort]').dataset.sort))"""
    order = page.evaluate(script)
    assert order == sorted(order)


def test_the_gallery_filters_by_family(visit: Any) -> None:
    papers = report_data.load()
    family = papers[0].card["family"]
    page = visit("gallery.html")
    page.select_option("[data-filter=family]", label=family)
    assert page.locator(".lb-item:not(.lb-hidden)").count() == sum(
        p.card["family"] == family for p in papers
    )
    assert page.locator(".lb-item img").evaluate_all(
        "images => images.every(i => i.naturalWidth > 0)"
    )


def test_hovering_a_term_shows_its_definition(visit: Any) -> None:
    page = visit("guide/claims.html")
    page.get_by_role("link", name="claim", exact=True).first.hover()
    page.wait_for_selector(".tippy-box", timeout=5000)
    assert "contradict" in page.locator(".tippy-box").inner_text()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(
    "name",
    [
        "index.html",
        "gallery.html",
        "scoreboard.html?kind=equivalence",
        "shelf.html",
        "guide/claims.html",
        *PAPER,
    ],
)
def test_axe_finds_nothing_serious(visit: Any, name: str, scheme: str) -> None:
    """Contrast, names, roles and order; the theme's own faults are listed above."""
    if not AXE.is_file():
        pytest.skip("data/web/axe-core is missing (make data)")
    page = visit(name, scheme=scheme)
    assert page.evaluate("document.documentElement.dataset.theme") == scheme
    page.add_script_tag(path=str(AXE))
    found = page.evaluate("axe.run({resultTypes: ['violations']}).then(r => r.violations)")
    serious = []
    for fault in (f for f in found if f["impact"] in ("serious", "critical")):
        ours = [n["html"] for n in fault["nodes"] if not is_theme(page, fault["id"], n["target"])]
        serious += [f"{fault['id']}: {html[:200]}" for html in ours]
    assert not serious, "\n".join(serious)


def is_theme(page: Any, rule: str, target: list[str]) -> bool:
    """True for an element that the theme makes and a fault that is listed as its own."""
    selector = THEME_FAULTS.get(rule)
    return bool(selector) and page.evaluate(
        "([t, s]) => !!document.querySelector(t)?.closest(s)", [target[0], selector]
    )
