"""The exact freeze: SHA-256 of what nolabel computes, to prove that a refactoring changes no bit.

    python tests/freeze --out before.txt --keep before          (on the commit before)
    python tests/freeze --compare before.txt --keep after       (after the change)
    diff -r before after                                        (what moved, as text)

It freezes the sources of its own checkout. Its items: twenty steps of every method on two networks, in two precisions,
as one process and as two; runs of eight steps through files with each way to make views, a stop and a resume; every
source; every protocol; the settings of every recipe; every help text. Machine, libraries and number of processors are
part of the numbers: they are compared on one machine and never committed. `texts.py` says what is left out of them.

Exit codes: 0: done, nothing moved; 1: an item moved or vanished; 2: an item could not be computed, or a wrong option.
"""

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from compare import differences, format_hashes, parse_hashes

HERE = Path(__file__).resolve().parent
GROUPS = ("files", "two", "one", "evaluations", "words")  # the longest first
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")


def main() -> int:
    options = _options()
    if options.list:
        return _worker("--list", Path(), options.only)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "texts"
        with ThreadPoolExecutor(options.jobs) as pool:
            codes = list(pool.map(lambda group: _worker(group, folder, options.only), GROUPS))
        folder.mkdir(exist_ok=True)
        if options.keep:
            shutil.copytree(folder, options.keep, dirs_exist_ok=True)
        texts = {path.relative_to(folder).with_suffix("").as_posix(): path for path in folder.rglob("*.txt")}
        hashes = {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in texts.items()}
    failed = [group for group, code in zip(GROUPS, codes, strict=True) if code]
    if failed:
        print(f"freeze: not all items of these groups could be computed: {', '.join(failed)}", file=sys.stderr)
    if options.out:
        options.out.write_text(format_hashes(hashes), encoding="utf-8")
    if options.compare:
        before = parse_hashes(options.compare.read_text(encoding="utf-8"))
        changed = _report(differences(before, hashes, options.only), len(hashes))
        return 2 if failed else int(changed)
    if not options.out:
        print(format_hashes(hashes), end="")
    return 2 if failed else 0


def _report(found: dict[str, list[str]], number: int) -> bool:
    """Print what differs among `number` items; gives whether an item moved or vanished."""
    for word, names in found.items():
        for name in names:
            print(f"{word:<8}  {name}")
    print(f"{number} items: " + ", ".join(f"{len(names)} {word}" for word, names in found.items()))
    return bool(found["moved"] or found["vanished"])


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "python tests/freeze", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", metavar="PATTERN", help="items with this in their name, such as 'eval/'")
    parser.add_argument("--list", action="store_true", help="only print the names of the items")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the hashes there instead of to stdout")
    parser.add_argument("--compare", type=Path, metavar="FILE", help="print what moved since this file was written")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep the text that each hash is of")
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="groups of items at a time (default 2)")
    options = parser.parse_args()
    if options.compare and not options.compare.is_file():
        parser.error(f"--compare {options.compare}: there is no such file")
    return options


def _worker(group: str, folder: Path, pattern: str) -> int:
    """The exit code of a process that writes the texts of a group; on failure its stderr is passed on."""
    path = os.pathsep.join(filter(None, (str(HERE.parents[1] / "src"), os.environ.get("PYTHONPATH"))))
    plain = {"COLUMNS": "100", "NO_COLOR": "1", "TERM": "dumb", "LC_ALL": "C.UTF-8", "HF_HUB_OFFLINE": "1"}
    unset = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "FORCE_COLOR", "NOLABEL_DEBUG")
    environment = {name: value for name, value in os.environ.items() if name not in unset}
    with tempfile.TemporaryDirectory() as cache:
        environment |= {"PYTHONPATH": path, "NOLABEL_CACHE": cache, "NOLABEL_DEBUG": "1"}
        environment |= plain | dict.fromkeys(THREADS, "1")
        command = [sys.executable, str(HERE / "worker.py"), group, str(folder), pattern]
        if group == "--list":
            return subprocess.run(command, env=environment, check=False).returncode
        done = subprocess.run(command, env=environment, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        print(done.stderr[-6000:], file=sys.stderr)
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
