"""No stream ends a run; a result that a full disk took is no success; nothing on a terminal commands it."""

import ast
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import nolabel
from nolabel import console
from nolabel.cli import main
from nolabel.progress import progress

SOURCE = Path(__file__).parents[1] / "src" / "nolabel"
FULL = Path("/dev/full")
needs_full = pytest.mark.skipif(not FULL.exists(), reason="this system has no /dev/full")


class Broken(io.StringIO):
    """A stream that fails at every write."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def write(self, text: str) -> int:
        raise self.error

    def flush(self) -> None:
        raise self.error


ERRORS = [
    BrokenPipeError(32, "Broken pipe"), OSError(28, "No space left on device"), OSError(5, "Input/output error"),
    BlockingIOError(11, "Resource temporarily unavailable"), ValueError("I/O operation on closed file"),
]  # fmt: skip


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__ + str(getattr(error, "errno", "")))
def test_lines_for_people_survive_any_stream(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Broken(error))
    monkeypatch.setattr(sys, "stdout", Broken(error))
    console.note("a line")
    console.closing_words("the end")
    print("a library's line", file=console.live(), flush=True)
    with console.kept_stderr():
        print("a warning", file=sys.stderr, flush=True)


def test_no_stream_at_all(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    console.note("a line")
    with console.kept_stderr():
        print("a library's line", file=sys.stderr, flush=True)
    assert capsys.readouterr().out == "", "print() to None goes to stdout, among the results"
    monkeypatch.setattr(sys, "stdout", None)
    console.result("a result")
    console.closing_words("the end")


def test_a_disk_that_has_room_again_gets_the_next_line(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Broken(OSError(28, "No space left on device"))
    monkeypatch.setattr(sys, "stderr", stream)
    console.note("lost")
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with console.kept_stderr():
        print("kept", file=sys.stderr)
        assert console._inner(sys.stderr).getvalue() == "kept\n"


def test_nothing_commands_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    name = "a\x1b]0;PWNED\x07\x1b[31mred\u202egpj.\x9b\r"
    console.note(f"skipped {name}\nand\tanother")
    console.result(name)
    seen = capsys.readouterr()
    for text in (seen.out, seen.err):
        assert "\\x1b]0;PWNED\\x07" in text and all(c.isprintable() or c in "\n\t" for c in text)
    assert "\nand\tanother\n" in seen.err


def test_letters_that_a_stream_lacks_are_escaped() -> None:
    raw = io.BytesIO()
    stream = console.Kept(io.TextIOWrapper(raw, encoding="ascii"))
    stream.write("café\n")
    stream.flush()
    assert raw.getvalue() == b"caf\\xe9\n" and stream.lost is None


def writes(source: str) -> list[str]:
    """The calls and names of a file that write to a stream without `console`."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print") or (
            isinstance(node, ast.Attribute) and ast.unparse(node) in ("sys.stdout", "sys.stderr", "sys.__stderr__")
        ):
            found.append(ast.unparse(node))
    return found


def test_only_the_console_writes_to_streams() -> None:
    paths = [path for path in sorted(SOURCE.rglob("*.py")) if path.name != "console.py"]
    assert len(paths) > 100 and writes("print('x')") and writes("import sys\nsys.stderr.write('x')")
    found = {path.name: lines for path in paths if (lines := writes(path.read_text(encoding="utf-8")))}
    assert not found, "use console.note or console.result"


def test_a_terminal_that_goes_away_ends_no_live_line(monkeypatch: pytest.MonkeyPatch) -> None:
    pty = pytest.importorskip("pty")
    master, slave = pty.openpty()
    monkeypatch.setenv("TERM", "xterm")
    with open(slave, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        with progress(0, 10) as report:
            report(1, {"loss": 1.0})
            seen = os.read(master, 1)
            os.close(master)
            report(2, {"loss": 1.0})
            console.note("a warning")
        with pytest.raises(OSError):  # it is gone: what would have ended the run
            print("a line", file=terminal, flush=True)
        console._send_nowhere(terminal)  # for what is left in its buffer
    assert seen


# ---- whole commands, each in a process of its own


def run(arguments: list[str], stdout: Any, stderr: Any, close: tuple[int, ...] = ()) -> int:
    """The exit code of `nolabel arguments` with these streams, the descriptors in `close` closed at the start."""
    code = "import os, sys\n" + "".join(f"os.close({n})\n" for n in close)
    code += "os.execv(sys.executable, [sys.executable, '-m', 'nolabel', *sys.argv[1:]])"
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], stdout=stdout, stderr=stderr, timeout=200
    ).returncode


def without_reader() -> int:
    """The writing end of a pipe whose reader is gone."""
    read, write = os.pipe()
    os.close(read)
    return write


def settings(tiny: dict[str, Any], data: Path, out: Path) -> list[str]:
    """`nolabel train` of some steps that says a line after each; two processes read images."""
    args = ["train", "dino-small", str(data), "--out", str(out), "--steps", "6", "--backbone", tiny["backbone"]]
    args += [f"--method.{k.replace('_', '-')}={v}" for k, v in tiny["method"].items()]
    args += [f"--{k.replace('_', '-')}={tiny[k]}" for k in ("batch_size", "threads", "precision", "device")]
    return [*args, "--log-every=1", "--workers=2", "--backbone-args", *tiny["backbone_args"]]


def check_done(out: Path) -> None:
    assert nolabel.Run(out).status()["state"] == "done"
    assert (out / "checkpoints" / "step-00000006").is_dir() and (out / "weights" / "model.safetensors").is_file()


def test_broken_streams_end_no_run(tiny: dict[str, Any], pictures: Path, tmp_path: Path) -> None:
    pipe = without_reader()
    with open(FULL if FULL.exists() else os.devnull, "w") as full:
        assert run(settings(tiny, pictures / "train", tmp_path / "run"), full, pipe) == 0
    os.close(pipe)
    check_done(tmp_path / "run")


def test_closed_streams_end_no_run(tiny: dict[str, Any], pictures: Path, tmp_path: Path) -> None:
    arguments = settings(tiny, pictures / "train", tmp_path / "run")
    assert run(arguments, subprocess.DEVNULL, subprocess.DEVNULL, close=(0, 1, 2)) == 0
    check_done(tmp_path / "run")


@pytest.mark.parametrize("arguments", [["list", "recipes"], ["train", "dino", "--help"]], ids=" ".join)
def test_a_result_that_nobody_can_read(arguments: list[str], tmp_path: Path) -> None:
    pipe = without_reader()
    assert run(arguments, pipe, subprocess.DEVNULL) == 0, "a reader such as head has seen enough"
    os.close(pipe)
    if FULL.exists():
        with open(FULL, "w") as full, open(tmp_path / "said", "w+") as said:
            assert run(arguments, full, said) == 74
            said.seek(0)
            assert said.read() == "nolabel: the result could not be written to stdout: No space left on device.\n"


@needs_full
def test_a_result_is_on_the_disk_before_it_is_printed(pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "knn.json"
    arguments = ["eval", "knn", "random:test_vit", str(pictures), "--out", str(out), "--image-size", "32"]
    with open(FULL, "w") as full:
        assert run([*arguments, "--device", "cpu"], full, subprocess.DEVNULL) == 74
    assert json.loads(out.read_text())["protocol"] == "knn"


@pytest.mark.parametrize("arguments", [["bogus"], ["train", "dino", "--bogus"]], ids=" ".join)
def test_an_error_keeps_its_code_where_nobody_reads_it(arguments: list[str]) -> None:
    pipe = without_reader()
    assert run(arguments, pipe, pipe) == 2
    os.close(pipe)


def test_a_closed_descriptor_is_no_place_for_files() -> None:
    code = (
        "import os\nos.close(2)\nfrom nolabel import console\nwith console.kept_streams():\n"
        "    print(open(os.devnull).fileno())"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert int(found.stdout) > 2, "what a library writes to descriptor 2 would go into that file"


def test_streams_are_given_back(capsys: pytest.CaptureFixture[str]) -> None:
    before = sys.stdout, sys.stderr
    main.main(["--version"])
    with pytest.raises(SystemExit):
        main.main(["bogus"])
    assert (sys.stdout, sys.stderr) == before
