"""Jinja2 templates of the book's pages: what a card, a discussion or a record says is shown as text.

Every value is escaped unless it is `Markup`, which only this package makes; a name that a template
uses and nobody gave it is an error.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

FOLDER = Path(__file__).parent / "templates"
ENV = Environment(
    loader=FileSystemLoader(FOLDER),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def render(template: str, /, **data: Any) -> Markup:
    """A template filled in.

    Raises:
        jinja2.TemplateError: it uses a name that is not among `data`, or has a fault; the error
            names its line.
    """
    return Markup(ENV.get_template(template).render(**data))


def piece(name: str, *arguments: Any) -> Markup:
    """A macro of macros.html, called: one element of a page, on one line.

    HTML never holds an empty line: in Markdown that would end the block.
    """
    return Markup(getattr(ENV.get_template("macros.html").module, name)(*arguments)).strip()
