"""Every ```python block, and every ```bash block that starts with `nolabel`, of the README and docs/ runs.

The blocks of a page run in their order, in a folder of its own that holds

    photos/     images, no labels          labelled/   train/ and val/ with class folders
    runs/a/     a run of two steps, unless the page trains it itself

A comment on the line before a block changes that:

    <!-- no-run: REASON -->     the block is not run
    <!-- run-with: OPTIONS -->  options for its `nolabel train` lines that keep the test short
"""

import contextlib
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from nolabel.cli.main import main

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md"))]
BLOCK = re.compile(
    r"^(?:<!-- (?P<mark>no-run|run-with):(?P<text>[^\n]*)-->\n)?"
    r"```(?P<language>python|bash)\n(?P<code>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
TINY = "--backbone vit_tiny_patch16_224 --backbone-args depth=2 --steps 2 --batch-size 4 --workers 0"


class Block(NamedTuple):
    line: int
    language: str
    code: str


def blocks(page: str) -> list[Block]:
    """The blocks of a page that are to be run."""
    found = []
    if len(re.findall("^ *```(python|bash)", page, re.MULTILINE)) != len(BLOCK.findall(page)):
        raise ValueError("a block is indented, or its last line is missing")
    for match in BLOCK.finditer(page):
        mark, text, language, code = (
            match["mark"],
            (match["text"] or "").strip(),
            match["language"],
            match["code"],
        )
        line = page.count("\n", 0, match.start("code"))
        if mark and not text:
            raise ValueError(f"line {line}: {mark} needs a text")
        if mark == "no-run" or (language == "bash" and not code.startswith("nolabel ")):
            continue
        if mark == "run-with":
            code = re.sub(r"^nolabel train .*", rf"\g<0> {text}", code, flags=re.MULTILINE)
        found.append(Block(line, language, code))
    return found


def run(block: Block) -> None:
    """Run a block in this process, which has imported torch: a process of its own takes seconds for that alone."""
    if block.language == "python":
        exec(compile(block.code, f"line {block.line}", "exec"), {"__name__": "__main__"})
        return
    for line in block.code.replace("\\\n", " ").splitlines():
        command, *arguments = shlex.split(line, comments=True) or [""]
        assert command in ("nolabel", ""), f"line {block.line}: {line!r} is no nolabel command"
        try:
            if command:
                main(arguments)
        except SystemExit as ended:
            raise AssertionError(f"line {block.line}: exit code {ended.code}\n{line}") from ended


@contextlib.contextmanager
def working_in(folder: Path) -> Iterator[None]:
    """A working directory, and the number of threads as before at the end: a run sets it."""
    threads = torch.get_num_threads()
    with contextlib.chdir(folder):
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from nolabel.data.demo import world as world_module

    folder = tmp_path_factory.mktemp("docs")
    world_module.write(folder / "labelled", num_train=64, num_val=32, size=64, seed=0)
    (folder / "photos").mkdir()
    for number, image in enumerate(sorted((folder / "labelled" / "train").rglob("*.png"))):
        shutil.copy(image, folder / "photos" / f"{number:04}.png")
    with working_in(folder):
        run(Block(0, "bash", f"nolabel train dino-small photos --out runs/a {TINY}"))
    return folder


@pytest.mark.parametrize("page", [page.relative_to(ROOT).as_posix() for page in PAGES])
def test_blocks_run(page: str, world: Path, tmp_path: Path) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    folder = tmp_path / "page"
    shutil.copytree(world, folder, ignore=shutil.ignore_patterns("runs") if "--out runs/a" in text else None)
    with working_in(folder):
        for block in blocks(text):
            run(block)


def test_blocks_are_found() -> None:
    page = """
```python
x = 1
```
<!-- no-run: takes hours -->
```bash
nolabel train dino photos --out runs/big
```
<!-- run-with: --steps 2 -->
```bash
nolabel train dino photos --out runs/a
nolabel report runs/a
```
```bash
make demo
```
```text
nolabel
```
"""
    train = "nolabel train dino photos --out runs/a --steps 2\nnolabel report runs/a\n"
    assert blocks(page) == [Block(2, "python", "x = 1\n"), Block(10, "bash", train)]
    with pytest.raises(ValueError, match="no-run needs a text"):
        blocks("<!-- no-run: -->\n```python\n1 / 0\n```\n")
    with pytest.raises(ValueError, match="indented"):
        blocks("1. a step\n   ```python\n   1 / 0\n   ```\n")


def test_a_failing_block_fails() -> None:
    with pytest.raises(ZeroDivisionError):
        run(Block(3, "python", "1 / 0"))
    with pytest.raises(AssertionError, match="line 3: exit code 2"):
        run(Block(3, "bash", "nolabel eval nothing runs/a  # a wrong name\n"))
    with pytest.raises(AssertionError, match="no nolabel command"):
        run(Block(3, "bash", "ls\n"))
