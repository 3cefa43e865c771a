"""The built book: every page is there, its tables equal the records, and it loads nothing from
elsewhere.
"""

from __future__ import annotations

import re
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from layerbook import paths
from layerbook.pages import build, lists, markup, paper_page
from layerbook.pages import papers as report_data

PAGES = {
    "index": "run instead of only read",
    "gallery": "Each picture comes from the paper",
    "scoreboard": "Every registered claim",
    "shelf": "What did not come out as its paper says",
    "guide/claims": "Two questions, never merged",
    "guide/rerun": "papermill notebooks/relp.ipynb out.ipynb -p seed 3",
    "guide/model": "-p model smollm2",
    "guide/gpu": "gpu-dry",
    "guide/rebuild": "dvc exp run -S papers.relp.seed=1",
    "guide/many": "layerbook run --tier gpu",
    "guide/cluster": "retry_memory_factor",
    "guide/add": "layerbook new my-paper",
    "assets": "SmolLM2-135M-Instruct",
    "reference": "layerbook.claims.zones.evaluate",
    "glossary": "smallest effect of interest",
    "bibliography": "The papers of this book",
    "404": "Page not found",
    "search": "Search",
}


class Page(HTMLParser):
    """What a page loads, links to and defines."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.links: list[str] = []
        self.ids: set[str] = set()
        self.images: list[dict[str, str | None]] = []
        self.prose: list[str] = []
        # open elements whose text is no prose: code, scripts, equations
        self._hidden: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        no_prose = (
            tag in ("pre", "code", "script", "style")
            or "math" in (values.get("class") or "").split()
        )
        if no_prose or (self._hidden and tag == self._hidden[0]):
            self._hidden.append(tag)
        if values.get("id"):
            self.ids.add(str(values["id"]))
        if tag in ("script", "img", "iframe", "source", "video", "audio", "embed") and values.get(
            "src"
        ):
            self.loads.append(str(values["src"]))
        if tag == "link" and values.get("rel") not in (
            "next",
            "prev",
            "canonical",
            "search",
            "index",
            "author",
        ):
            self.loads.append(str(values.get("href")))
        if tag == "a" and values.get("href"):
            self.links.append(str(values["href"]))
        if tag == "img":
            self.images.append(values)

    def handle_endtag(self, tag: str) -> None:
        if self._hidden and tag == self._hidden[-1]:
            self._hidden.pop()

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            self.prose.append(data)


@pytest.fixture(scope="session")
def html() -> Path:
    try:
        return build.build_book()
    except build.BookError as error:
        pytest.fail(str(error), pytrace=False)


@pytest.fixture(scope="session")
def papers() -> list[report_data.Paper]:
    found = report_data.load()
    if not found:
        pytest.skip("no record in results/ yet")
    return found


@pytest.fixture(scope="session")
def pages(html: Path) -> dict[str, Page]:
    skip = {"_static", "_sources", "_downloads"}
    files = [p for p in html.rglob("*.html") if not skip & set(p.relative_to(html).parts)]
    return {p.relative_to(html).as_posix(): Page(p) for p in files}


@pytest.mark.parametrize("name", PAGES)
def test_each_page_is_there_and_says_what_it_should(html: Path, name: str) -> None:
    text = (html / f"{name}.html").read_text(encoding="utf-8")
    assert len(text) > 5000
    assert PAGES[name] in unescape(re.sub(r"<[^>]+>", "", text)), (
        f"{name} does not hold {PAGES[name]!r}"
    )


def test_each_paper_has_its_page_with_verdicts_and_foot(
    html: Path, papers: list[report_data.Paper]
) -> None:
    for paper in papers:
        for tier, record in paper.records.items():
            name = paper.slug if tier == paper.main else f"{paper.slug}-{tier}"
            text = (html / "papers" / f"{name}.html").read_text(encoding="utf-8")
            assert f"results/{tier}/{paper.slug}.json" in text, "the foot names the record"
            assert text.count(markup.cost(record)) == 2, "in the header and in the foot"
            for claim in paper.claims(tier):
                assert f'id="claim-{claim["id"]}"' in text
                assert (
                    markup.badge(claim["verdict"], claim["role"], silent=claim.get("silent", False))
                    in text
                )


def test_no_page_loads_anything_from_another_host(pages: dict[str, Page]) -> None:
    outside = {u for page in pages.values() for u in page.loads if urlsplit(u).netloc}
    assert not outside


def test_every_internal_link_leads_somewhere(html: Path, pages: dict[str, Page]) -> None:
    dead = []
    for name, page in pages.items():
        if name == "404.html":  # its links are absolute: it may be served at any depth
            continue
        for link in page.links + page.loads:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (html / name).parent / unquote(parts.path) if parts.path else html / name
            if not target.exists():
                dead.append(f"{name} -> {link}")
                continue
            key = target.resolve().relative_to(html.resolve()).as_posix()
            if (
                parts.fragment
                and key in pages
                and unquote(parts.fragment) not in pages[key].ids | {"top"}
            ):
                dead.append(f"{name} -> {link}")
    assert not dead, "\n".join(dead[:20])


def test_every_figure_has_a_text_alternative(pages: dict[str, Page]) -> None:
    bare = {
        f"{n}: {i.get('src')}"
        for n, p in pages.items()
        for i in p.images
        if len((i.get("alt") or "").split()) < 3
    }
    assert not bare


def test_no_equation_is_left_as_source(pages: dict[str, Page]) -> None:
    raw = [
        f"{n}: {t.strip()[:80]}"
        for n, p in pages.items()
        for t in p.prose
        if re.search(r"\$\$|\\[a-zA-Z]+[{_^]", t)
    ]
    assert not raw, "\n".join(raw[:20])


def test_the_scoreboard_equals_the_records(html: Path, papers: list[report_data.Paper]) -> None:
    text = (html / "scoreboard.html").read_text(encoding="utf-8")
    rows = dict(
        re.findall(r'<tr class="lb-row" data-key="([^"]+)"(.*?)</tr>', text, flags=re.DOTALL)
    )
    claims = {f"{p.slug}-{c['id']}": c for p in papers for c in p.claims()}
    assert set(rows) == set(claims)
    for key, claim in claims.items():
        assert f'data-verdict="{markup.css(claim["verdict"])}"' in rows[key]
        if claim.get("estimate") is not None:
            assert f'value="{claim["estimate"]}"' in rows[key]
            assert markup.interval(claim["interval"]) in rows[key]


def test_the_front_page_counts_the_records(html: Path, papers: list[report_data.Paper]) -> None:
    text = (html / "index.html").read_text(encoding="utf-8")
    verdicts = [c["verdict"] for p in papers for c in p.claims() if c["kind"] in report_data.PROPER]
    for verdict in markup.VERDICTS:
        assert (
            f'verdict={markup.css(verdict)}&amp;kind={lists.CLAIMS}"><b>{verdicts.count(verdict)}</b>'
            in text
        )
    assert text.count('class="lb-square ') == len(verdicts) + len(markup.VERDICTS)


def test_what_did_not_hold_is_on_the_shelf(html: Path, papers: list[report_data.Paper]) -> None:
    text = (html / "shelf.html").read_text(encoding="utf-8")
    shelved = set(re.findall(r'class="lb-shelf" id="([^"]+)"', text))
    claims = {f"{p.slug}-{c['id']}": c for p in papers for c in p.claims()}
    assert shelved == {key for key, c in claims.items() if lists.shelf_place(c)}
    assert shelved >= {
        key
        for key, c in claims.items()
        if c["verdict"] == "not reproduced" and c["kind"] != "control"
    }


def test_a_claim_that_failed_says_why(papers: list[report_data.Paper]) -> None:
    silent = [
        f"book/discussion/{p.slug}.yaml lacks {c['id']} ({c['verdict']})"
        for p in papers
        for c in p.claims()
        if lists.shelf_place(c) in ("not reproduced", "weaker", "reproduced", "undecided")
        and not {"reason", "would_change"} <= set(p.discussion.get(c["id"]) or {})
    ]
    assert not silent, "\n".join(silent)


def test_discussions_talk_about_registered_claims(papers: list[report_data.Paper]) -> None:
    known = {p.slug: {c["id"] for c in p.card["claims"]} for p in papers}
    for p in papers:
        assert set(p.discussion) <= known[p.slug], (
            f"book/discussion/{p.slug}.yaml names a claim that its card lacks"
        )


def test_the_gallery_shows_every_paper(html: Path, papers: list[report_data.Paper]) -> None:
    text = (html / "gallery.html").read_text(encoding="utf-8")
    assert text.count("lb-item") - text.count(".lb-item") == len(papers)
    for paper in papers:
        assert f'href="papers/{paper.slug}.html"' in text


def test_every_paper_is_in_the_bibliography(html: Path, papers: list[report_data.Paper]) -> None:
    text = (html / "bibliography.html").read_text(encoding="utf-8")
    for paper in papers:
        assert paper_page.bibtex(paths.ROOT, paper.card["cite"]), (
            f"book/references.bib lacks {paper.card['cite']}"
        )
    assert text.count('class="citation"') >= len(papers)


def test_every_asset_is_listed_with_its_licence(html: Path) -> None:
    text = (html / "assets.html").read_text(encoding="utf-8")
    for name, entry in report_data.read_yaml(paths.ROOT / "src/layerbook/data/assets.yaml").items():
        assert f'id="{name}"' in text
        assert entry["licence"] in text


@pytest.mark.parametrize("name", ["index", "gallery", "scoreboard", "shelf", "reference"])
def test_generated_pages_hold_no_typed_numbers(name: str) -> None:
    """Hand-written pages with results in them include a rendered fragment, and type no count."""
    text = (paths.BOOK / f"{name}.md").read_text(encoding="utf-8")
    included = re.findall(r"\{include\} (_generated/\S+)", text)
    assert included and all((paths.BOOK / fragment).stat().st_size for fragment in included)
    prose = text.replace(
        "the estimate with its 95 % interval (90 % for an", ""
    )  # the engine's levels
    assert re.findall(r".*\d.*", prose) == []


def test_no_launch_or_source_button_without_a_repository(html: Path) -> None:
    if report_data.read_yaml(paths.BOOK / "_config.yml")["repository"]["url"]:
        pytest.skip("the repository's address is set")
    for page in html.glob("*.html"):
        text = page.read_text(encoding="utf-8")
        assert "colab.research" not in text and "mybinder" not in text and "fa-github" not in text
