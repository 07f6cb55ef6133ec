"""The pages of the site that do not lie in docs/: README, other pages of the repository, and the API reference.

mkdocs.yml names this module as a hook. The pages stay where a reader of the repository looks for them, and the site
gets copies with their links turned.
"""

from __future__ import annotations

import ast
import os.path
import re
from pathlib import Path, PurePosixPath

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

import bam_plugin

ROOT = Path(__file__).parents[1]
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "security.md",
    "bam_plugin/zoo/MODEL_CARD.md": "card.md",
}
ROOMS = sorted({path.parent.name for path in (ROOT / "bam_plugin").glob("*/__init__.py")} - {"commands", "zoo"})

_LINK = re.compile(r"\]\(([^)\s]+)\)")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put the API reference behind the other pages of the navigation."""
    assert config.nav is not None
    config.nav.append({"API": ["api/index.md", *(f"api/{room}.md" for room in ROOMS)]})
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are not in docs/."""
    for source, target in PAGES.items():
        text = turn_links((ROOT / source).read_text(encoding="utf-8"), source, target)
        files.append(File.generated(config, target, content=text))
    files.append(File.generated(config, "api/index.md", content=_public_names()))
    for room in ROOMS:
        files.append(File.generated(config, f"api/{room}.md", content=_reference(room)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn the links of the pages in docs/ that lead out of it."""
    inside = (ROOT / "docs" / page.file.src_uri).is_file()
    return turn_links(markdown, f"docs/{page.file.src_uri}", page.file.src_uri) if inside else markdown


def turn_links(text: str, source: str, target: str) -> str:
    """Links of `source`, a path in the repository, as the page `target` of the site needs them."""

    def turned(match: re.Match[str]) -> str:
        link, mark, anchor = match[1].partition("#")
        if not link or ":" in link:
            return match[0]
        place = os.path.normpath(PurePosixPath(source).parent / link)
        page = PAGES.get(place, place.removeprefix("docs/"))
        return f"]({os.path.relpath(page, PurePosixPath(target).parent)}{mark}{anchor})"

    return _LINK.sub(turned, text)


def _public_names() -> str:
    """The names that `import bam_plugin` offers, with the first line of each docstring."""
    lines = []
    for name, module in bam_plugin._PUBLIC.items():
        tree = ast.parse((ROOT / (module.replace(".", "/") + ".py")).read_text(encoding="utf-8"))
        [node] = [node for node in tree.body if getattr(node, "name", None) == name]
        assert isinstance(node, ast.FunctionDef | ast.ClassDef)
        lines.append(f"| [`bam_plugin.{name}`][{module}.{name}] | {(ast.get_docstring(node) or '').splitlines()[0]} |")
    return "\n".join(["# Public names", "", "| name | what it does |", "|---|---|", *lines])


def _reference(room: str) -> str:
    """The page of one room: its docstring, then every public module."""
    modules = [path for path in sorted((ROOT / "bam_plugin" / room).rglob("*.py")) if path.parent.name != "csrc"]
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in modules]
    public = [name for name in names if not any(part.startswith("_") for part in name.split("."))]
    return f"# {room}\n\n" + "\n".join(f"::: {name}\n" for name in public)
