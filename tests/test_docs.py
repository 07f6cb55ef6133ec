"""The README and the guides: every relative link and picture leads somewhere, and so does every heading they name."""

from __future__ import annotations

import importlib.util
import re
import shlex
import subprocess
from pathlib import Path

import pytest
from helpers.places import ROOT

from bam_plugin.cli import COMMANDS, build_parser

PAGES = [*sorted(ROOT.glob("*.md")), ROOT / "bam_plugin/zoo/MODEL_CARD.md", *sorted((ROOT / "docs").rglob("*.md"))]
LINK = re.compile(
    r"\]\(\s*<?([^)\s>]+)>?[^)]*\)|<(?:img|a)\b[^>]*\b(?:src|href)=\"([^\"]+)\"|^\[[^\]]+\]:\s*(\S+)", re.M
)
FENCED = re.compile(r"^```.*?^```", re.M | re.S)


def links(page: Path) -> list[str]:
    """What the page links to within the repository."""
    found = ["".join(groups) for groups in LINK.findall(FENCED.sub("", page.read_text(encoding="utf-8")))]
    return [link for link in found if not re.match(r"[a-z][a-z0-9+.-]*:", link)]


def anchors(page: Path) -> set[str]:
    """The names of the page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ +(.+?)\s*$", FENCED.sub("", page.read_text(encoding="utf-8")), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_there_are_links_to_check() -> None:
    assert len(PAGES) > 5
    assert "docs/networks.md" in links(ROOT / "README.md")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    # In a checkout only files under version control count: the others are not there for other people.
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    tracked = {ROOT / name for name in listed.stdout.splitlines()}
    broken = []
    for link in links(page):
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        there = target.is_dir() or (target in tracked if tracked else target.is_file())
        if not there or (anchor and target.suffix == ".md" and anchor not in anchors(target)):
            broken.append(link)
    assert not broken


def code(page: Path, *languages: str) -> str:
    """The fenced code of the page in these languages ("" for fences that name none)."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S)
    return "\n".join(text for language, text in blocks if language in languages)


def bam_lines(page: Path) -> list[list[str]]:
    """The words of each `bam` command that the page shows, comments left out."""
    text = code(page, "sh", "").replace("\\\n", " ")
    lines = [line.removeprefix("$ ") for line in text.splitlines()]
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("bam ")]


def test_there_are_commands_to_check() -> None:
    assert ["compare", "photo.png", "--html"] in bam_lines(ROOT / "README.md")


@pytest.mark.parametrize(
    "page", [page for page in PAGES if bam_lines(page)], ids=lambda page: str(page.relative_to(ROOT))
)
def test_every_command_shown_exists_with_its_options(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, *words in bam_lines(page):
        words = words[:1] if name == "run" else words  # what follows belongs to the script
        assert name in COMMANDS, f"bam {name}"
        with pytest.raises(SystemExit):
            build_parser(name).parse_args([name, "--help"])
        usage = capsys.readouterr().out
        unknown = [word for word in words if re.match(r"--?[a-z]", word) and not re.search(rf"(?<!\S){word}\b", usage)]
        assert not unknown, f"bam {name} {unknown}"


@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if "bam_plugin" in code(page, "python")],
    ids=lambda page: str(page.relative_to(ROOT)),
)
def test_every_name_imported_in_an_example_exists(page: Path) -> None:
    imports = re.findall(r"^(?:from bam_plugin\S* import .+|import bam_plugin)$", code(page, "python"), re.M)
    assert imports
    for line in imports:
        exec(line, {})


def test_the_site_turns_links_of_pages_outside_docs() -> None:
    pytest.importorskip("mkdocs")
    spec = importlib.util.spec_from_file_location("site_pages", ROOT / "tools/site_pages.py")
    site = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(site)
    text = "[a](docs/data.md#measuring) [b](bam_plugin/zoo/MODEL_CARD.md) [c](https://x.org/docs/data.md)"
    assert (
        site.turn_links(text, "README.md", "index.md")
        == "[a](data.md#measuring) [b](card.md) [c](https://x.org/docs/data.md)"
    )
    assert site.turn_links("[a](../README.md#train)", "docs/data.md", "data.md") == "[a](index.md#train)"
    assert site.turn_links("![p](images/p.png)", "docs/lab/a.md", "lab/a.md") == "![p](images/p.png)"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_file_that_a_page_names_is_there(page: Path) -> None:
    text = re.sub(r"New file `[^`]+`", "", page.read_text(encoding="utf-8"))  # of a recipe in CONTRIBUTING.md
    words = [word for code in re.findall(r"`([^`\n]+)`", text) for word in code.split()]
    named = {word for word in words if re.fullmatch(r"[\w.-]+/[\w./-]+\.(py|c|h|yml|md|csv|png|pth)", word)}
    others = ("basicsr", "experiments", "results", "datasets")  # and examples that a reader writes
    ours = {word for word in named if word.split("/")[0] not in others and not re.search("example|my_", word)}
    assert not [word for word in ours if not any((folder / word).is_file() for folder in (ROOT, ROOT / "bam_plugin"))]


def test_the_tables_of_binarizers_are_those_of_the_classes() -> None:
    spec = importlib.util.spec_from_file_location("docs_tables", ROOT / "tools/docs_tables.py")
    tables = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tables)
    page = tables.PAGE.read_text(encoding="utf-8")
    assert tables.written(page) == page, "run python tools/docs_tables.py"
