"""Lists of what the book rests on: models and data with their licences, networks, and the package."""

from __future__ import annotations

import json
from pathlib import Path

from markupsafe import Markup

from layerbook.data.manifest import load as load_assets
from layerbook.pages import markup as h
from layerbook.pages import templating
from layerbook.pages.papers import Paper


def assets(root: Path, papers: list[Paper]) -> str:
    """Models and data with source, licence and the papers that use them; then the networks trained
    here.
    """
    users: dict[str, list[Markup]] = {}
    for paper in papers:
        for name in paper.card["substrate"]:
            users.setdefault(name, []).append(templating.piece("link", paper.slug, paper.short))
    rows = []
    for a in load_assets(root / "src" / "layerbook" / "data" / "assets.yaml").values():
        own = [Markup("the book and its tests")] if a.client == "npm" else []
        name = templating.piece("asset", a.name, h.memory(a.size / 1e6))
        source = templating.piece("source", a)
        used = Markup(", ").join(users.get(a.name, own))
        rows.append(({}, [name, h.inline(a.description), source, a.licence, used]))
    trained = []
    for path in sorted((root / "results" / "models").glob("*/card.json")):
        card, name = json.loads(path.read_text(encoding="utf-8")), path.parent.name
        used = Markup(", ").join(users.get(name, []))
        trained.append(
            ({}, [templating.piece("asset", name, ""), h.inline(card["description"]), used])
        )
    return templating.render(
        "assets.md",
        assets=h.table(("Asset", "What it is", "Source", "Licence", "Used by"), rows),
        networks=h.table(("Network", "What it is", "Used by"), trained) if trained else "",
    )


def reference(root: Path) -> str:
    """One autodoc section per public module of the package, below what the folder that it lies in
    is for.
    """
    package, sections = root / "src" / "layerbook", []
    folders = [p.parent for p in package.rglob("__init__.py") if "__pycache__" not in p.parts]
    for folder in sorted(folders):
        home = ".".join(folder.relative_to(package.parent).parts)
        modules = [f.stem for f in sorted(folder.glob("*.py")) if not f.stem.startswith("_")]
        sections.append(
            {
                "name": home,
                # the package's own docstring stands at the top of the page in other words
                "told": folder != package,
                "modules": [f"{home}.{module}" for module in modules],
            }
        )
    return templating.render("reference.md", folders=sections)
