"""The site draws with its own fonts: the same widths whichever fonts a machine has installed."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from test_browser import ARGS, CHROMIUM, SHIPPED, fontconfig, site  # noqa: F401 - `site` is a fixture

from layerbook import paths
from layerbook.pages import build

pytestmark = pytest.mark.skipif(
    not Path(CHROMIUM).is_file(), reason="chromium is not installed (apt install chromium)"
)

WIDTHS = (1280, 390)
LARGEST = 1_000_000  # bytes of all fonts of the site

# Widths of one text of each style, written into the page that is open; and the page's own.
MEASURE = """async () => {
  await document.fonts.ready;
  const found = {};
  for (const selector of %s) {
    const element = [...document.querySelectorAll(selector)].find(e => e.getClientRects().length && e.textContent.trim());
    if (!element) continue;
    const range = document.createRange();
    range.selectNodeContents(element);
    found[selector] = [...range.getClientRects()].map(r => r.width);
  }
  return found;
}"""
SELECTORS = ["h1", "article p", "article em", "code", "pre", ".lb-verdict", ".lb-badge", ".lb-legend", "button", "select", "dt.sig",
             "figcaption", "svg text", ".bd-sidebar-primary a", "th", "td"]  # fmt: skip

# Every character of the page by the family, weight and slant that it is set in.
CHARACTERS = """() => {
  const found = {};
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node = walk.nextNode(); node; node = walk.nextNode()) {
    const parent = node.parentElement;
    if (!parent || parent.closest('script, style, noscript, mjx-container, svg.svg-inline--fa')) continue;
    const style = getComputedStyle(parent);
    const key = [style.fontFamily, style.fontWeight, style.fontStyle].join('|');
    found[key] = [...new Set((found[key] || '') + node.data)].join('');
  }
  return found;
}"""


@pytest.fixture(scope="module")
def machines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """Two browsers: one where DejaVu alone is installed, one with a narrow serif alone.

    Chromium itself ends on the first page where fontconfig knows no font at all, whatever the page
    holds.
    """
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    folder = tmp_path_factory.mktemp("fonts")
    choices = {"dejavu": "DejaVu*.ttf", "serif": "STIXGeneral.ttf"}
    for name, pattern in choices.items():
        (folder / name).mkdir()
        for font in SHIPPED.glob(pattern):
            shutil.copy(font, folder / name)
    with sync_api.sync_playwright() as play:
        browsers = {}
        for name in choices:
            environment = os.environ | {
                "FONTCONFIG_FILE": fontconfig(folder / f"{name}-config", folder / name)
            }
            browsers[name] = play.chromium.launch(
                executable_path=CHROMIUM, args=ARGS, env=environment
            )
        yield browsers
        for browser in browsers.values():
            browser.close()


def pages() -> list[str]:
    """The address of every page, generated ones included."""
    html = build.build_book()
    return sorted(
        p.relative_to(html).as_posix() for p in html.rglob("*.html") if "_static" not in p.parts
    )


def of_each_kind() -> list[str]:
    """All pages but those of papers, which one template makes: of these the longest. All of them
    where LAYERBOOK_EXHAUSTIVE is set, as `make test-full` does; each is looked at on a phone in
    test_browser anyhow.
    """
    if os.environ.get("LAYERBOOK_EXHAUSTIVE"):
        return pages()
    html = build.build_book()
    papers = [p for p in pages() if p.startswith("papers/")]
    longest = max(papers, key=lambda page: (html / page).stat().st_size)
    return [p for p in pages() if p not in papers or p == longest]


@pytest.mark.timeout(900)  # two browsers, at two widths
def test_every_page_fits_and_is_the_same_whatever_is_installed(machines: Any, site: str) -> None:  # noqa: F811
    tabs = {name: browser.new_context().new_page() for name, browser in machines.items()}
    wide, differing, elsewhere, fonts = [], [], [], set()

    def watch(request: Any) -> None:
        if not request.url.startswith((site, "data:")):
            elsewhere.append(request.url)
        if request.resource_type == "font":
            fonts.add(request.url.removeprefix(site))

    for tab in tabs.values():
        tab.on("request", watch)
    for page in of_each_kind():
        seen: dict[str, dict[tuple[int, str], list[float]]] = {name: {} for name in tabs}
        for name, tab in tabs.items():
            tab.set_viewport_size({"width": WIDTHS[0], "height": 844})
            tab.goto(f"{site}/{page}", wait_until="load")
            for width in WIDTHS:
                tab.set_viewport_size({"width": width, "height": 844})
                measured = tab.evaluate(MEASURE % SELECTORS)
                seen[name] |= {(width, selector): widths for selector, widths in measured.items()}
                across = tab.evaluate("document.documentElement.scrollWidth")
                if across > width:
                    wide.append(f"{page}: {across} px of {width}, installed: {name}")
        for key, widths in seen["dejavu"].items():
            if widths != pytest.approx(seen["serif"].get(key), abs=1):
                differing.append(
                    f"{page}: {key}: {widths[:5]} with DejaVu, {(seen['serif'].get(key) or [])[:5]} with a serif"
                )
    assert not wide, "\n".join(wide)
    assert not differing, "\n".join(differing[:10])
    assert not elsewhere
    assert any("/vendor/fonts/ibm-plex-sans-latin" in f for f in fonts) and any(
        "dejavu-sans" in f for f in fonts
    )


def test_every_character_is_drawn_by_a_font_of_the_site(machines: Any, site: str) -> None:  # noqa: F811
    """Asked of the browser itself, where DejaVu is installed: text that falls back to it would look
    like the site's own.
    """
    tab = machines["dejavu"].new_context().new_page()
    # the text as written; scripts add none of their own
    tab.route("**/*.js", lambda route: route.abort())
    styles: dict[str, set[str]] = {}
    for page in pages():
        tab.goto(f"{site}/{page}", wait_until="domcontentloaded")
        for style, characters in tab.evaluate(CHARACTERS).items():
            styles.setdefault(style, set()).update(c for c in characters if not c.isspace())
    tab.goto(f"{site}/index.html", wait_until="load")
    talk = tab.context.new_cdp_session(tab)
    talk.send("DOM.enable")
    talk.send("CSS.enable")
    strangers = []
    for style, characters in styles.items():
        if characters:
            strangers += foreign(tab, talk, style, "".join(sorted(characters)))
    assert not strangers, "\n".join(strangers)


def foreign(tab: Any, talk: Any, style: str, characters: str) -> list[str]:
    """The installed fonts that the browser takes for these characters in this style; [] when all
    are the site's.
    """
    tab.evaluate(
        """async ([style, text]) => {
            document.body.replaceChildren();
            const line = document.createElement('p');
            [line.style.fontFamily, line.style.fontWeight, line.style.fontStyle] = style.split('|');
            line.id = 'probe';
            line.textContent = text;
            document.body.append(line);
            line.getClientRects();
            await document.fonts.ready;
        }""",
        [style, characters],
    )
    root = talk.send("DOM.getDocument")["root"]["nodeId"]
    node = talk.send("DOM.querySelector", {"nodeId": root, "selector": "#probe"})["nodeId"]
    used = talk.send("CSS.getPlatformFontsForNode", {"nodeId": node})["fonts"]
    return [
        f"{f['familyName']}: {f['glyphCount']:.0f} of {characters!r} in {style}"
        for f in used
        if not f["isCustomFont"]
    ]


def test_fonts_come_from_the_site_with_their_licences() -> None:
    vendor = build.build_book() / "_static" / "vendor"
    style = (paths.BOOK / "_static" / "layerbook.css").read_text(encoding="utf-8")
    named = set(re.findall(r"url\(vendor/fonts/([^)]+)\)", style))
    shipped = {p.name for p in (vendor / "fonts").glob("*")}
    assert named == shipped, "each font that the style sheet names is there, and no other"
    assert sum(p.stat().st_size for p in (vendor / "fonts").glob("*")) < LARGEST
    assert "http" not in "".join(re.findall(r"@font-face \{[^}]*\}", style))
    page = (vendor.parents[1] / "assets.html").read_text(encoding="utf-8")
    for licence in re.findall(r'href="(_static/vendor/licences/[^"]+)"', page):
        assert "ermission" in (vendor.parents[1] / licence).read_text(encoding="utf-8")
    assert page.count("_static/vendor/licences/") == len(list((vendor / "licences").glob("*"))) > 6
