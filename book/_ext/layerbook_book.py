"""What Sphinx needs to know about this book: local web libraries and fonts, page feet, launch
links, plain docstrings.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html import escape
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError

from layerbook.pages import markup

# what lies below data/web -> its place below _static/vendor
VENDOR = {
    "mathjax/es5": "mathjax",
    "popper/dist/umd/popper.min.js": "popper.min.js",
    "tippy/dist/tippy-bundle.umd.min.js": "tippy-bundle.umd.min.js",
    "font-sans/files": "fonts",
    "font-mono/files": "fonts",
    "font-symbols/files": "fonts",
    "font-mono-symbols/files": "fonts",
    "mathjax/LICENSE": "licences/mathjax.txt",
    "popper/LICENSE.md": "licences/popper.txt",
    "tippy/LICENSE": "licences/tippy.txt",
    "font-sans/LICENSE": "licences/font-sans.txt",
    "font-mono/LICENSE": "licences/font-mono.txt",
    "font-symbols/LICENSE": "licences/font-symbols.txt",
    "font-mono-symbols/LICENSE": "licences/font-mono-symbols.txt",
}
LAUNCH = {
    "Colab": "https://colab.research.google.com/github/{repo}/blob/{branch}/notebooks/{slug}.ipynb",
    "Binder": "https://mybinder.org/v2/gh/{repo}/{branch}?labpath=notebooks%2F{slug}.ipynb",
}


def root_of(app: Sphinx) -> Path:
    """The checkout that holds the book being built."""
    return Path(app.srcdir).resolve().parent


def _repository(app: Sphinx) -> str:
    return str(app.config.html_theme_options.get("repository_url") or "").rstrip("/")


def copy_vendor(app: Sphinx, _: Any = None) -> None:
    """Copy web libraries and fonts into the build, outside html_static_path: Jupyter Book would
    load a library twice.
    """
    target = Path(app.outdir) / "_static" / "vendor"
    for source, place in VENDOR.items():
        found = root_of(app) / "data" / "web" / source
        if not found.exists():
            raise ExtensionError(
                f"{found} is missing: get the book's web libraries and fonts with `make data`"
            )
        (target / place).parent.mkdir(parents=True, exist_ok=True)
        if found.is_dir():
            # contents alone: data/ may be a read-only link into a cache, and a copy must be
            #     replaceable
            shutil.copytree(
                found, target / place, dirs_exist_ok=True, copy_function=shutil.copyfile
            )
        else:
            shutil.copyfile(found, target / place)


def configure(app: Sphinx, config: Any) -> None:
    """Repository buttons only when there is a repository."""
    options = config.html_theme_options
    if not options.get("repository_url"):
        options.pop("repository_url", None)
    else:
        options["use_repository_button"] = options["use_issues_button"] = True
    # they would open book/papers, which is not in the repository
    options.pop("launch_buttons", None)


def commit_of(root: Path, record: Path) -> str:
    """The last commit of a record; 'uncommitted' without git, without history, or with local
    changes.
    """

    def git(*words: str) -> str | None:
        # a checkout that another user owns is read here, and only read
        command = ["git", "-c", f"safe.directory={root}", *words]
        try:
            done = subprocess.run(
                command,
                cwd=root,
                capture_output=True,
                encoding="utf-8",
                errors="replace",
                check=False,
                timeout=20,
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    dirty = git("status", "--porcelain", "--", str(record))
    return (
        (git("log", "-1", "--format=%h", "--", str(record)) or "uncommitted")
        if dirty == ""
        else "uncommitted"
    )


def _paper(pagename: str) -> tuple[str, str] | None:
    """(slug, tier) of a paper's page, else None."""
    found = re.fullmatch(r"papers/(.+?)(?:-(gpu))?", pagename)
    return (found.group(1), found.group(2) or "cpu") if found else None


def outdated(app: Sphinx, env: Any, added: set, changed: set, removed: set) -> list[str]:
    """Pages whose record got another commit since they were written: their foot is stale."""
    before = getattr(env, "layerbook_commits", {})
    now = {}
    for docname in env.found_docs:
        if paper := _paper(docname):
            record = root_of(app) / "results" / paper[1] / f"{paper[0]}.json"
            now[docname] = commit_of(root_of(app), record) if record.is_file() else ""
    env.layerbook_commits = now
    return [d for d, commit in now.items() if d in before and before[d] != commit]


def page_foot(
    app: Sphinx, pagename: str, template: str, context: dict, doctree: nodes.document | None
) -> None:
    """Under each paper: commit, device, time, memory and the command that makes it again; launch
    links on top.
    """
    if doctree is None:
        return
    if r"\(" in context.get("body", "") and "lb-" in context["body"]:
        app.env.get_domain("math").data["has_equations"][pagename] = (
            True  # math in a rendered table
        )
    paper = _paper(pagename)
    record_path = (
        root_of(app) / "results" / (paper or ("", ""))[1] / f"{(paper or ('', ''))[0]}.json"
    )
    if not paper or not record_path.is_file():
        return
    slug, tier = paper
    record, repository = json.loads(record_path.read_text(encoding="utf-8")), _repository(app)
    commit = app.env.layerbook_commits.get(pagename, "uncommitted")
    shown = f"<code>{commit}</code>"
    if repository and commit != "uncommitted":
        shown = f'<a href="{repository}/commit/{commit}">{shown}</a>'
    versions = ", ".join(f"{k} {v}" for k, v in record["versions"].items())
    context["body"] += (
        f'<footer class="lb-foot" aria-label="How this page was made"><p>Record '
        f"<code>results/{tier}/{slug}.json</code> at commit {shown}. Took {markup.cost(record)}; {escape(versions)}. "
        f"Again: <code>make rerun PAPER={slug} TIER={tier}</code></p></footer>"
    )


def launch_buttons(app: Sphinx, pagename: str, template: str, context: dict, doctree: Any) -> None:
    """A rocket in the header of a paper's page, once the repository's address is known."""
    repository, paper = _repository(app), _paper(pagename)
    if not paper or "github.com/" not in repository or "header_buttons" not in context:
        return
    place = {
        "repo": repository.split("github.com/")[1],
        "branch": app.config.html_theme_options.get("repository_branch") or "main",
        "slug": paper[0],
    }
    buttons = [
        {
            "type": "link",
            "url": url.format(**place),
            "text": name,
            "tooltip": f"Launch on {name}",
            "label": name.lower(),
        }
        for name, url in LAUNCH.items()
    ]
    group = {
        "type": "group",
        "tooltip": "Launch the notebook",
        "icon": "fas fa-rocket",
        "label": "launch-buttons",
    }
    context["header_buttons"].insert(0, {**group, "buttons": buttons})


def drop_double_thebe(
    app: Sphinx, pagename: str, template: str, context: dict, doctree: Any
) -> None:
    """sphinx-thebe adds its inline script twice, and its library comes from elsewhere: leave both
    out.
    """
    files = context.get("script_files")
    if files is not None:
        context["script_files"] = [
            f for f in files if "thebe" not in f"{f} {getattr(f, 'attributes', '')}".lower()
        ]


SECTION = re.compile(r"(Args|Returns|Yields|Raises|Attributes|Example|Source):\s*$")


def plain_docstring(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]
) -> None:
    """Docstrings are plain text here: escape what reStructuredText takes for markup, keep `code`,
    sections and blocks.
    """
    out: list[str] = []
    literal = section = False
    for line in lines:
        body = line.lstrip()
        indent = line[: len(line) - len(body)]
        if body and not indent:
            literal, section = False, bool(SECTION.match(body))
        elif body and not section and not literal and (not out or not out[-1]):
            out += ["::", ""]  # an indented block of its own: a command or a table
            literal = True
        pieces = re.split(r"(`+[^`]+`+)", body)
        plain = [
            f"``{p.strip('`')}``" if p.startswith("`") else re.sub(r"([\\*|_`])", r"\\\1", p)
            for p in pieces
        ]
        out.append(indent + (body if literal else "".join(plain)))
    lines[:] = out


def setup(app: Sphinx) -> dict[str, Any]:
    """Connect everything."""
    app.connect("config-inited", configure)
    app.connect("env-get-outdated", outdated)
    # before tippy and MathJax look at the page
    app.connect("html-page-context", page_foot, priority=400)
    app.connect("html-page-context", launch_buttons, priority=600)
    app.connect("html-page-context", drop_double_thebe, priority=900)
    # before napoleon reads the sections
    app.connect("autodoc-process-docstring", plain_docstring, priority=400)
    app.connect("build-finished", copy_vendor)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
