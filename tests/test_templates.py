"""Templates of the book's pages: they escape, they refuse what nobody gave them, and all are used."""

from __future__ import annotations

import re
from pathlib import Path

import jinja2
import pytest
from markupsafe import Markup

from layerbook.pages import family_page, markup, speed, templating
from layerbook.pages.papers import Paper

SCRIPT = '<script>alert("x")</script>'


def test_text_is_escaped_and_only_markup_is_not():
    cells = [SCRIPT, SCRIPT, Markup("<b>bold</b>")]
    made = markup.table(["a", SCRIPT, "c"], [({"data-x": f'"{SCRIPT}'}, cells)])
    assert "<script" not in made and made.count("&lt;script&gt;") == 5 and "<b>bold</b>" in made
    for shown in (
        markup.inline(SCRIPT),
        markup.inline(f"`{SCRIPT}`"),
        markup.inline(f"*{SCRIPT}*"),
        markup.badge("held", SCRIPT),
        markup.ours({"estimate": 1.0, "n": 3, "unit": SCRIPT}),
        markup.overview([(SCRIPT, {"reproduced": 1})]),
    ):
        assert "<script" not in shown
    panel = {"name": SCRIPT, "statement": SCRIPT, "values": [1.0, 2.0]}
    assert "<script" not in family_page._panel(panel, 1)
    record = {"seconds": 1, "peak_memory_mb": 1, "device": SCRIPT}
    paper = Paper("slug", {"claims": []}, {"cpu": record}, {})
    assert "<script" not in speed.runs([paper])


def test_a_row_has_a_cell_for_each_title():
    with pytest.raises(ValueError, match="2 cells"):
        markup.table(["a", "b"], [({}, ["1", "2"]), ({}, ["1"])])


def test_a_name_that_nobody_gave_is_an_error_with_its_place():
    with pytest.raises(jinja2.UndefinedError, match="'papers' is undefined"):
        templating.render("runs.md", made=1, table="")
    broken = templating.ENV.overlay(loader=jinja2.DictLoader({"a.md": "one\n{% if %}\n"}))
    with pytest.raises(jinja2.TemplateSyntaxError) as caught:
        broken.get_template("a.md")
    assert caught.value.lineno == 2


def test_html_on_a_page_holds_no_empty_line():
    """In Markdown that would end the block."""
    row = ({}, ["1", Markup("<i>2</i>")])
    for piece in (
        markup.table(["a", "b"], [row, row], sort=True),
        templating.piece("filters", ".lb-row", {"x": ("X", ["a", "b"])}),
        markup.forest(
            {"estimate": 1.0, "values": [0.5, 2.0], "interval": [0.0, 2.0]}, {"above": 0}
        ),
    ):
        assert "\n\n" not in piece


def test_every_template_and_macro_is_used():
    package = Path(templating.__file__).parent
    code = "\n".join(f.read_text(encoding="utf-8") for f in package.glob("*.py"))
    unused = [f.name for f in templating.FOLDER.iterdir() if f'"{f.name}"' not in code]
    assert unused == []
    macros = (templating.FOLDER / "macros.html").read_text(encoding="utf-8")
    for name in re.findall(r"{% macro (\w+)\(", macros):
        assert f'piece("{name}"' in code or f'"{name}",' in code, name


def test_no_page_is_put_together_in_python():
    """Elements stand in templates; what is left in code are those of a single word or sentence."""
    package = Path(templating.__file__).parent
    found = {
        file.name: len(re.findall(r"</?(?:table|tr|td|div|svg|ul|li|form|figure)\b", text))
        for file in package.glob("*.py")
        if (text := file.read_text(encoding="utf-8"))
    }
    assert sum(found.values()) == 0, found
