"""Cards and discussions with any one value replaced by hostile text: a message with its line, or a
page that shows it as text.
"""

import copy
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from mdit_py_plugins.colon_fence import colon_fence_plugin
from mdit_py_plugins.dollarmath import dollarmath_plugin
from ruamel.yaml import YAML
from test_report import CARD, make_root

from layerbook import paths
from layerbook.claims import cards, discussions
from layerbook.notebook import tables
from layerbook.pages import lists, markup, paper_page, papers
from layerbook.pipeline import record

# What somebody might put into a card to break or to take over what reads it.
WORDS = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    '" onmouseover="alert(1)',
    "</table></div><h1>x",
    "{{ 7*7 }}",
    "${jndi:ldap://x}",
    "{% raw %}",
    "\u0000",
    "a\u202eb",
    "\u200f",
    "\ufeff",
    "x" * 5000,
    "\n\n# heading\n\n```{raw} html\n<b>\n```\n",
    "```{raw} html",
    "{raw-html}`<b>`",
    "$\\href{javascript:alert(1)}{x}$",
    "$\\require{html}\\style{color:red}{x}$",
    "$$",
    "$x$ `y` *z*",
    "[x](javascript:alert(1))",
    "![x](http://x/y.png)",
    "<http://x>",
    "javascript:alert(1)",
    "file:///etc/passwd",
    "../../etc/passwd",
    "---",
    "...",
    "!!python/object:os.system",
    "&a [*a]",
    "*a",
    "no",
    "on",
    "null",
    "~",
    "3",
    "1e400",
    ".nan",
    "TODO",
    "",
    "   ",
    "\t",
    "C1\n",
    "%YAML 1.1",
    "# comment",
    "{a: 1}",
    "[1, 2",
    "'",
    '"',
    "\\",
    "::: {note}",
    ":::",
    "---\na: 1\n---\n",
    "\r\n\r\nx",
    "\u2028",
    "@misc{x,}",
    "}} , evil = {",
    "\ud7ff\U0001f600",
    "{download}`x </etc/passwd>`",
]
VALUES = st.one_of(
    st.sampled_from(WORDS),
    st.text(max_size=40),
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.just(10**400),
    st.lists(st.sampled_from(WORDS), max_size=3),
    st.dictionaries(st.sampled_from(WORDS), st.sampled_from(WORDS), max_size=2),
    st.just([]),
    st.just({}),
)
REAL = sorted(paths.NOTEBOOKS.glob("*.yaml"), key=lambda file: file.stat().st_size)[:2]
quick = settings(
    deadline=None,
    max_examples=50,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def places(value, where=()):
    """The path of every value inside a card."""
    items = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    for key, inner in items:
        yield (*where, key)
        yield from places(inner, (*where, key))


def put(data, where, value, as_key=False):
    """A copy with one value (or the key above it) replaced."""
    out = copy.deepcopy(data)
    node = out
    for key in where[:-1]:
        node = node[key]
    if as_key and isinstance(node, dict) and isinstance(value, str | int | float | bool | None):
        node[value] = node.pop(where[-1])
    else:
        node[where[-1]] = value
    return out


def dump(data) -> str:
    stream = io.StringIO()
    yaml = YAML(typ="safe", pure=True)
    yaml.representer.ignore_aliases = lambda _: True
    yaml.dump(data, stream)
    return stream.getvalue()


def accepted(file: Path):
    """The card, or None when it is refused in due form. Any exception but CardError is a failure."""
    try:
        return cards.read(file)
    except cards.CardError as error:
        lines = [line for line in str(error).split("\n") if line]
        assert (
            lines
            and lines[0].startswith(f"{file.name}:")
            and re.match(r"\d+: .", lines[0].split(":", 1)[1])
        )
        return None


class Tags(HTMLParser):
    """Everything in a piece of HTML that could act."""

    def __init__(self, text):
        super().__init__()
        self.bad = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        if tag in (
            "script",
            "iframe",
            "img",
            "object",
            "embed",
            "link",
            "style",
            "base",
            "h1",
            "form",
            "math",
        ):
            self.bad.append(tag)
        for name, value in attrs:
            if name.startswith("on") or name in ("style", "srcdoc", "formaction"):
                self.bad.append(f"{tag} {name}")
            if (
                name in ("href", "src")
                and re.match(r"\s*[a-z][a-z0-9+.-]*:", value or "", flags=re.I)
                and not re.match(r"https?://", value or "")
            ):
                self.bad.append(f"{tag} {value}")


def harmless(markdown: str, fences: set[str]) -> None:
    """Nothing in a page's Markdown acts: no foreign tags, no directives or roles, no links or
    images but the page's own.
    """
    parser = MarkdownIt("commonmark").use(dollarmath_plugin).use(colon_fence_plugin)
    for token in parser.parse(markdown):
        if token.type in ("fence", "colon_fence"):
            assert token.info.strip().split(" ")[0] in fences, token.info
        assert token.type not in ("math_block", "code_block", "hr"), token.content
        if token.type == "html_block":
            assert not Tags(token.content).bad, token.content
        for part in token.children or []:
            assert part.type not in ("math_inline", "image", "html_inline"), part.content
            assert part.type != "link_open" or re.match(r"[\w-]+\.ipynb", part.attrs["href"]), (
                part.attrs
            )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of cards with the book's own bibliography beside it."""
    root = tmp_path_factory.mktemp("hostile")
    (root / "notebooks").mkdir()
    (root / "book").mkdir()
    (root / "book" / "references.bib").write_bytes((paths.BOOK / "references.bib").read_bytes())
    return root / "notebooks"


@pytest.fixture(scope="module")
def book(tmp_path_factory):
    """A made-up book of one paper."""
    return make_root(tmp_path_factory.mktemp("book"))


@pytest.mark.parametrize("source", REAL, ids=lambda file: file.stem)
@settings(quick, max_examples=20)
@given(data=st.data(), value=VALUES, as_key=st.booleans())
def test_a_real_card_with_one_value_replaced(folder, source, data, value, as_key):
    card = YAML(typ="safe").load(source)
    where = data.draw(st.sampled_from(list(places(card))))
    file = folder / source.name
    try:
        file.write_text(dump(put(card, where, value, as_key)), encoding="utf-8", newline="")
    except UnicodeEncodeError:
        return
    if (read := accepted(file)) is not None:
        assert not Tags(tables.registered(read)).bad


@settings(quick, max_examples=25)
@given(
    data=st.data(), raw=st.one_of(st.sampled_from(WORDS), st.text(max_size=30)), whole=st.booleans()
)
def test_a_real_card_with_one_line_overwritten(folder, data, raw, whole):
    source = REAL[0]
    lines = source.read_text(encoding="utf-8").split("\n")
    k = data.draw(st.integers(0, len(lines) - 1))
    head, colon, _ = lines[k].partition(":")
    lines[k] = raw if whole or not colon else f"{head}: {raw}"
    file = folder / source.name
    file.write_bytes("\n".join(lines).encode("utf-8", errors="surrogatepass"))
    accepted(file)


@settings(quick, max_examples=20)
@given(st.binary(max_size=200), st.integers(0, 10_000))
def test_a_real_card_with_bytes_put_in(folder, raw, at):
    file = folder / REAL[0].name
    content = REAL[0].read_bytes()
    file.write_bytes(content[:at] + raw + content[at:])
    accepted(file)


def test_bombs_are_refused_at_once(folder):
    file = folder / REAL[0].name
    bombs = [
        "a: &a [x, x]\n"
        + "".join(f"k{k}: &b{k} [{f'*b{k - 1}, ' * 9 if k else '*a, '}x]\n" for k in range(40)),
        "a: " + "[" * 4_000,
        "a: " + "{b: " * 5_000,
        "x" * 300_000,
        "a: " + "9" * 100_000,
        "- " * 5_000 + "x",
    ]
    for bomb in bombs:
        file.write_text(bomb, encoding="utf-8")
        assert accepted(file) is None


@quick
@given(data=st.data(), value=VALUES)
def test_a_page_shows_a_hostile_card_as_text(book, data, value):
    where = data.draw(st.sampled_from(list(places(CARD))))
    file = book / "notebooks" / "toy-paper.yaml"
    try:
        file.write_text(dump(put(CARD, where, value)), encoding="utf-8", newline="")
    except UnicodeEncodeError:
        return
    if accepted(file) is None:
        return
    try:
        paper = papers.load(book)[0]
    except papers.BookError:  # the record holds a claim that the card no longer does
        return
    pages(book, paper)


@quick
@given(
    value=st.one_of(st.sampled_from(WORDS), st.text(max_size=60)),
    field=st.sampled_from(["reason", "would_change", "title", "summary"]),
)
def test_a_page_shows_hostile_prose_as_text(book, value, field):
    """The same for what no schema refuses: it must be harmless, whatever lets it through."""
    card = {**CARD, field: value} if field in CARD else CARD
    said = {
        "C2": {"reason": "r", "would_change": "w"} | ({field: value} if field not in CARD else {})
    }
    stored = papers.load(make_clean(book))[0]
    pages(book, papers.Paper("toy-paper", card, stored.records, said))


def make_clean(book):
    (book / "notebooks" / "toy-paper.yaml").write_text(dump(CARD), encoding="utf-8")
    return book


def pages(book, paper):
    """Render every page that shows a card or a discussion, and look at what came out."""
    try:
        header = paper_page._header(paper, "cpu", markup.markdown(paper.card["title"]), "")
        parts = [lists.summary([paper]), lists.scoreboard([paper]), lists.shelf([paper])]
        gallery = lists.gallery(book, [paper])
        cite = paper_page._cite(book, paper, True)
    except papers.BookError:
        return
    harmless(header, {"bash"})
    harmless(cite, {"bibtex"})
    for part in parts:
        bare = re.sub(r'<form class="lb-filters".*?</form>', "", part, flags=re.S)
        harmless(bare, set())
    items = [line for line in gallery.split("\n") if line.startswith(":::{")]
    assert len(items) == 1 and gallery.count("\n:::\n") == 1
    harmless(items[0].removeprefix(":::{grid-item-card}").strip() or "x", set())
    # options of a directive are plain text to Sphinx, which escapes them where it writes attributes
    shown = re.sub(r"<form.*?</form>", "", gallery, flags=re.S)
    shown = re.sub(r'^:[a-z-]+: ".*"$', "", shown, flags=re.M)
    assert not Tags(shown).bad


@quick
@given(data=st.data(), value=VALUES, as_key=st.booleans())
def test_a_discussion_with_one_value_replaced(folder, data, value, as_key):
    said = {"C1": {"reason": "r", "would_change": "w"}, "C2": {"reason": "r", "would_change": "w"}}
    where = data.draw(st.sampled_from(list(places(said))))
    file = folder / "discussion.yaml"
    try:
        file.write_text(dump(put(said, where, value, as_key)), encoding="utf-8", newline="")
    except UnicodeEncodeError:
        return
    try:
        read = discussions.read(file, CARD)
    except discussions.DiscussionError as error:
        assert re.match(r"discussion/discussion\.yaml:\d+: .", str(error))
    else:
        assert all(
            isinstance(text, str) and text.strip()
            for prose in read.values()
            for text in prose.values()
        )


@pytest.mark.parametrize(
    "math",
    [
        r"$\href{javascript:alert(1)}{x}$",
        r"$\require{html}x$",
        r"$\def\a{b}\a$",
        r"$a\)<b$",
        r"$\class{x}{y}$",
    ],
)
def test_math_that_could_act_is_shown_as_written(math):
    assert "math" not in markup.inline(math)


def test_ordinary_math_is_still_set():
    assert markup.inline(r"$\frac{1}{n}\sum_i \left[x_i\right]$").startswith('<span class="math')


DECIDES = (
    *("id", "kind", "tests", "smallest", "tier", "fails", "requires"),
    *("compare", "deterministic"),
)


def deciding(card):
    """What of a card decides its verdicts."""
    return [{k: claim.get(k) for k in DECIDES} for claim in card["claims"]] + [
        (g["id"], g["test"]) for g in card.get("gates", [])
    ]


def test_no_hostile_card_is_fresh_with_other_verdicts(house):
    """With evidence in place, `problems` neither raises nor is content with a card that decides
    otherwise.
    """
    from layerbook.pipeline import runner

    runner.run("toy")
    assert record.problems("toy", "cpu") == []
    file = house.root / "notebooks" / "toy.yaml"
    text, card = file.read_text(encoding="utf-8"), cards.load("toy")

    @settings(quick, max_examples=40)
    @given(data=st.data(), value=VALUES, as_key=st.booleans())
    def attack(data, value, as_key):
        where = data.draw(st.sampled_from(list(places(card))))
        try:
            file.write_text(dump(put(card, where, value, as_key)), encoding="utf-8", newline="")
        except UnicodeEncodeError:
            return
        if record.problems("toy", "cpu") == []:
            assert deciding(cards.load("toy")) == deciding(card)

    @settings(quick, max_examples=40)
    @given(data=st.data(), raw=st.one_of(st.sampled_from(WORDS), st.text(max_size=30)))
    def overwrite(data, raw):
        lines = text.split("\n")
        k = data.draw(st.integers(0, len(lines) - 2))
        head, colon, _ = lines[k].partition(":")
        lines[k] = f"{head}: {raw}" if colon else raw
        file.write_bytes("\n".join(lines).encode("utf-8", errors="surrogatepass"))
        if record.problems("toy", "cpu") == []:
            assert deciding(cards.load("toy")) == deciding(card)

    attack()
    overwrite()
