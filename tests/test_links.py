"""Links, anchors and paths of the documentation: every one leads somewhere."""

import re
from collections import Counter
from pathlib import Path

import pytest

from nolabel.cli.main import COMMANDS

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "nolabel"
LOG = ROOT / "benchmarks" / "log"
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *LOG.glob("*.md"), *ROOT.glob("tests/**/*.md")])
LINK = re.compile(r"(?<!\\)\]\((?!https?:|mailto:)([^)#\s]*)(?:#([^)\s]+))?\)")
CODE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
PATH = re.compile(r"`((?:src|tests|docs|benchmarks|examples)/[\w./-]+)`")
NAME = re.compile(r"docs/[\w/.-]+\.md")


def anchors(page: str) -> set[str]:
    """The anchors that GitHub gives to the headings of a page."""
    seen: Counter[str] = Counter()
    names = set()
    for heading in re.findall(r"^#{1,6} +(.+?) *$", CODE.sub("", page), re.MULTILINE):
        text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        slug = re.sub(r"[^\w\- ]", "", text).replace(" ", "-")
        names.add(f"{slug}-{seen[slug]}" if seen[slug] else slug)
        seen[slug] += 1
    return names


def broken(page: Path, text: str) -> list[str]:
    """The relative links of `text` that lead to no file, or to no heading of it."""
    wrong = []
    for target, anchor in LINK.findall(CODE.sub("", text)):
        path = page.parent / target if target else page
        if not path.exists():
            wrong.append(target)
        elif anchor and anchor not in anchors(path.read_text(encoding="utf-8")):
            wrong.append(f"{target}#{anchor}")
    return wrong


def relative(pages: list[Path]) -> list[str]:
    return [page.relative_to(ROOT).as_posix() for page in pages]


@pytest.mark.parametrize("page", relative(PAGES))
def test_links(page: str) -> None:
    assert broken(ROOT / page, (ROOT / page).read_text(encoding="utf-8")) == []


def test_broken_links_are_found() -> None:
    page = ROOT / "README.md"
    text = "[a](docs/README.md#start) [b](docs/README.md#nowhere) [c](docs/nothing.md) [d](#nowhere) [e](LICENSE)"
    assert broken(page, text) == ["docs/README.md#nowhere", "docs/nothing.md", "#nowhere"]


def test_anchors_are_those_of_github() -> None:
    page = "# A `--flag`, and *more*\n\n```\n# no heading\n```\n\n## Is it?\n## Is it?\n### [Link](x.md) 1.5 × 2\n"
    assert anchors(page) == {"a---flag-and-more", "is-it", "is-it-1", "link-15--2"}


@pytest.mark.parametrize("page", relative([page for page in PAGES if page.parent != LOG]))
def test_paths_to_files_exist(page: str) -> None:
    """Entries of the log are left out: they name the files of their day."""
    paths = PATH.findall((ROOT / page).read_text(encoding="utf-8"))
    written_by_hand = [path for path in paths if not any(part.isupper() for part in Path(path).stem.split("-"))]
    assert [path for path in written_by_hand if not (ROOT / path).exists()] == []


def test_pages_named_in_the_code_exist() -> None:
    files = [*SOURCE.rglob("*.py"), *ROOT.glob("tests/**/*.py"), *ROOT.glob("benchmarks/*.py")]
    named = {name for file in files if file != Path(__file__) for name in NAME.findall(file.read_text("utf-8"))}
    assert named
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []


def test_every_page_can_be_reached() -> None:
    """From docs/README.md by links between pages."""
    reached, left = set[Path](), [ROOT / "docs" / "README.md"]
    while left:
        page = left.pop().resolve()
        if page not in reached and page.suffix == ".md":
            reached.add(page)
            left += [page.parent / target for target, _ in LINK.findall(page.read_text("utf-8")) if target]
    pages = [*ROOT.glob("docs/**/*.md"), *LOG.glob("*.md")]
    assert [page.name for page in pages if page.resolve() not in reached] == []


def test_index_of_the_log_has_every_entry_once() -> None:
    listed = Counter(re.findall(r"\]\(([\w-]+\.md)\)", (LOG / "README.md").read_text(encoding="utf-8")))
    entries = {page.name for page in LOG.glob("*.md")} - {"README.md"}
    assert listed.keys() == entries and set(listed.values()) == {1}
    assert all(re.match(r"\d{4}-\d{2}-\d{2}-[a-z0-9-]+\.md$", name) for name in entries)


@pytest.mark.parametrize("name", sorted(page.name for page in LOG.glob("2*.md")))
def test_entries_of_the_log_are_complete(name: str) -> None:
    text = (LOG / name).read_text(encoding="utf-8")
    fields = ("Question", "Command", "Hardware", "Commit", "Verdict")
    assert [field for field in fields if not re.search(rf"^\* \*\*{field}:\*\* \S", text, re.MULTILINE)] == []


def test_results_stay_short() -> None:
    lines = (ROOT / "docs" / "results.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 150 and max(map(len, lines)) <= 140


def test_map_has_every_module() -> None:
    """`__init__.py` of a folder may be left out: its folder has a heading."""
    text = (ROOT / "docs" / "internals" / "map.md").read_text(encoding="utf-8")
    listed = {name for name in re.findall(r"`([\w/]+\.py)`", text) if not name.startswith("tests/")}
    modules = {file.relative_to(SOURCE).as_posix() for file in SOURCE.rglob("*.py")}
    needed = {name for name in modules if not name.endswith("/__init__.py")}
    assert sorted(needed - listed) == [], "docs/internals/map.md lacks modules"
    assert sorted(listed - modules) == [], "docs/internals/map.md names modules that are gone"


def test_every_command_has_its_section() -> None:
    text = (ROOT / "docs" / "reference" / "commands.md").read_text(encoding="utf-8")
    assert sorted(re.findall(r"^## `nolabel (\w+)`$", text, re.MULTILINE)) == sorted(COMMANDS)
