"""Processes that prepare images die, hang or are killed by a file: the batches stay equal, or an error says where."""

import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

import nolabel
from nolabel import config
from nolabel.config import load
from nolabel.data import loader, workers
from nolabel.data.bad_files import BadImage
from nolabel.data.images import scan
from nolabel.data.loader import Batch, Stream, batches
from nolabel.data.workers import DeadWorker
from nolabel.training import job, loop
from nolabel.views import View

STEPS = 30  # of 3 an epoch; more than are prepared in advance


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Deaths are seen after 0.1 s instead of 5."""
    monkeypatch.setattr(torch.utils.data._utils, "MP_STATUS_CHECK_INTERVAL", 0.2)
    monkeypatch.setattr(_MultiProcessingDataLoaderIter._try_get_data, "__defaults__", (0.1,))


@pytest.fixture
def stream(pictures: Path) -> Stream:
    return Stream(scan(pictures, "train"), (View(16, (0.3, 1.0)), View(8, (0.1, 0.3))), 0, 8)


def equal(a: list[Batch], b: list[Batch]) -> bool:
    assert len(a) == len(b) == STEPS
    return all(all(map(torch.equal, x.views, y.views)) and x.bad == y.bad for x, y in zip(a, b, strict=True))


def disturbed(stream: Stream, disturb: Callable[[int], None], num_workers: int = 2) -> list[Batch]:
    found = []
    for batch in batches(stream, range(STEPS), num_workers):
        found.append(batch)
        disturb(len(found))
    return found


def hit(number: int) -> Callable[[], None]:
    def send() -> None:
        victims = multiprocessing.active_children()
        if victims:
            os.kill(random.Random(len(victims)).choice(victims).pid or 0, number)

    return send


@pytest.mark.parametrize("at", [{1}, {4}, {1, 8, 16}])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["SIGKILL", "SIGTERM"])
def test_a_death_changes_no_pixel(stream: Stream, at: set[int], number: signal.Signals) -> None:
    found = disturbed(stream, lambda n: hit(number)() if n in at else None)
    assert equal(found, list(batches(stream, range(STEPS), 0)))
    assert not equal(found, list(batches(stream._replace(seed=1), range(STEPS), 0)))
    notes = [note for batch in found for note in batch.notes]
    how = {signal.SIGKILL: "SIGKILL", signal.SIGTERM: "exit code 0"}[number]  # torch's processes obey their parent
    assert 1 <= len(notes) <= len(at) and f"died ({how}) at step" in notes[0]
    assert not multiprocessing.active_children()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV], ids=["SIGKILL", "SIGSEGV"])
def test_a_death_at_any_instant_changes_no_pixel(stream: Stream, number: signal.Signals) -> None:
    """20 instants drawn from the time that the batches take, the first of them while the processes start."""
    expected, choice = list(batches(stream, range(STEPS), 0)), random.Random(7)
    started = time.monotonic()
    assert equal(list(batches(stream, range(STEPS), 2)), expected)
    seconds, deaths = time.monotonic() - started, 0
    for i in range(20):
        timer = threading.Timer(choice.uniform(0, seconds) * i / 19, hit(number))
        timer.start()
        found = list(batches(stream, range(STEPS), 2))
        timer.join()
        assert equal(found, expected)
        deaths += any(batch.notes for batch in found)
    print(f"{deaths} of 20 streams had a process die by {number.name}; all their pixels were right")
    assert deaths > 5, "else this test says little"


def test_a_hang_changes_no_pixel(stream: Stream, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "HANG", 0.5)
    found = disturbed(stream, lambda n: hit(signal.SIGSTOP)() if n == 1 else None, num_workers=1)
    assert equal(found, list(batches(stream, range(STEPS), 0)))
    assert "hung for 0 s" in next(batch.notes[0] for batch in found if batch.notes)


def test_a_stopped_process_does_not_outlive_its_stream(stream: Stream) -> None:
    found = batches(stream, range(STEPS), 1)
    next(found)
    hit(signal.SIGSTOP)()
    found.close()  # type: ignore[attr-defined]
    assert not multiprocessing.active_children()


def test_a_death_is_raised_nowhere_else(stream: Stream, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's own handler raises in the middle of whatever runs, for example between two weights of an update."""

    def busy(n: int) -> None:
        if n == 2:
            hit(signal.SIGKILL)()
            until = time.monotonic() + 0.5
            while time.monotonic() < until:
                pass

    assert len(disturbed(stream, busy)) == STEPS
    assert signal.getsignal(signal.SIGCHLD) == signal.SIG_DFL


@pytest.fixture
def killer(monkeypatch: pytest.MonkeyPatch, stream: Stream) -> Iterator[Callable[[Callable[[], None]], str]]:
    """Makes one file of the data do something to the process that reads it; gives its name."""
    name = stream.images.names[5]
    data = Path(stream.images.root, name).read_bytes()
    cut = loader.cut

    def arrange(do: Callable[[], None]) -> str:
        def deadly(given: bytes, *rest: Any, **named: Any) -> Any:
            if given == data:
                do()
            return cut(given, *rest, **named)

        monkeypatch.setattr(loader, "cut", deadly)
        return name

    yield arrange


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def refuse() -> None:
    raise BadImage("kills its reader", "the process that read it SIGKILL")


def test_a_file_that_kills_is_found_and_left_out(stream: Stream, killer: Callable[[Callable[[], None]], str]) -> None:
    name = killer(die)
    found = list(batches(stream, range(STEPS), 2))
    assert {file.name for batch in found for files in batch.bad for file in files} == {name}
    killer(refuse)
    expected = list(batches(stream, range(STEPS), 0))
    assert all(all(map(torch.equal, a.views, b.views)) for a, b in zip(found, expected, strict=True))
    assert [[f.name for f in files] for b in found for files in b.bad] == [
        [f.name for f in files] for b in expected for files in b.bad
    ]


def work_in_parallel() -> None:
    torch.ones(2**20).add(1)


def test_a_harmless_file_is_not_blamed_after_the_parent_used_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "PROBE", 10.0)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        work_in_parallel()
        assert workers.survives(work_in_parallel) == ""
    finally:
        torch.set_num_threads(threads)


def test_what_dies_without_end_is_an_error_that_names_the_images(
    stream: Stream, killer: Callable[[Callable[[], None]], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    killer(die)
    monkeypatch.setattr(loader, "survives", lambda *_: "")  # nobody is found guilty
    with pytest.raises(DeadWorker, match=r"died \(SIGKILL\) at step \d+, and so did 3 before it.") as caught:
        list(batches(stream, range(STEPS), 1))
    assert caught.value.code == 75
    assert "It was preparing " in str(caught.value) and ".png and 5 more" in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 5


def test_an_error_in_a_process_stays_an_error(stream: Stream, killer: Callable[[Callable[[], None]], str]) -> None:
    def fail() -> None:
        raise RuntimeError("a bug")

    killer(fail)
    with pytest.raises(RuntimeError, match="a bug"):
        list(batches(stream, range(STEPS), 1))


def test_a_search_for_the_killer_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "PROBE", 0.3)
    assert workers.survives(time.sleep, 60).startswith("hung for")
    assert workers.survives(die) == "SIGKILL"
    assert workers.survives(len, 3) == ""  # an error is no death


def test_training_goes_on_bit_equal(
    tiny: dict[str, Any], pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = tiny | {"data": pictures / "train", "steps": 20, "eval_every": 100, "workers": 2}
    nolabel.train("dino-small", **settings, out=tmp_path / "whole")
    step = loop.training_step

    def killing(job: Any, views: Any, clock: Any) -> Any:
        if clock.step == 2:
            hit(signal.SIGKILL)()
        return step(job, views, clock)

    monkeypatch.setattr(loop, "training_step", killing)
    run = nolabel.train("dino-small", **settings, out=tmp_path / "run")
    tensors = [path / "weights" / "model.safetensors" for path in (run.path, tmp_path / "whole")]
    assert tensors[0].read_bytes() == tensors[1].read_bytes()
    (event,) = [e for e in run.events() if e["event"] == "restart"]
    assert "died (SIGKILL)" in event["reason"]
    nolabel.train("dino-small", **settings | {"seed": 1}, out=tmp_path / "seed")
    assert (tmp_path / "seed" / "weights" / "model.safetensors").read_bytes() != tensors[0].read_bytes()


# ---- shared memory


def tensors_of(batch: Batch) -> tuple[torch.Tensor, ...]:
    return (*batch.views, *(batch.sources or ()))


@pytest.mark.parametrize("whole", [False, True])
def test_pipes_change_no_pixel(stream: Stream, whole: bool) -> None:
    stream = stream._replace(whole=whole)
    other = stream._replace(piped=True, seed=1)
    piped, shared, seed = (list(batches(s, range(STEPS), 1)) for s in (stream._replace(piped=True), stream, other))
    assert any(not torch.equal(a, b) for a, b in zip(tensors_of(seed[0]), tensors_of(piped[0]), strict=True))
    for a, b in zip(piped, shared, strict=True):
        tensors = [tensors_of(x) for x in (a, b)]
        assert tensors[0] and all(map(torch.equal, *tensors))
        assert all(isinstance(t, torch.Tensor) and not t.is_shared() for t in tensors[0])
        assert all(t.is_shared() for t in tensors[1]), "else this test says nothing"


def test_shared_memory_that_is_too_small_is_reported_and_not_used(
    tiny: dict[str, Any], pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    needed = 5 * 8 * 3 * (2 * 32**2 + 2 * 16**2)  # four batches that wait and one that is used
    usage = type(shutil.disk_usage(tmp_path))
    monkeypatch.setattr(workers.shutil, "disk_usage", lambda _: usage(0, 0, needed))
    assert workers.fits_shared_memory(needed, str(tmp_path)) == ""
    assert workers.fits_shared_memory(needed + 1, str(tmp_path / "none")) == ""
    assert "MiB free" in workers.fits_shared_memory(needed + 1, str(tmp_path))
    settings = tiny | {"data": pictures / "train", "steps": 1, "eval_every": 100}
    monkeypatch.setattr(job, "fits_shared_memory", lambda n: workers.fits_shared_memory(n, str(tmp_path)))
    for free, pipes in ((needed, False), (needed - 1, True)):
        monkeypatch.setattr(workers.shutil, "disk_usage", lambda _, free=free: usage(0, 0, free))
        made = job.build(config.resolve(recipe(settings, workers=1), 24, 1, CPU), scan(settings["data"]), CPU)
        assert made.stream.piped == pipes
        assert ("sent through pipes" in capfd.readouterr().err) == pipes
    made = job.build(config.resolve(recipe(settings, workers=0), 24, 1, CPU), scan(settings["data"]), CPU)
    assert not made.stream.piped


def recipe(settings: dict[str, Any], **more: Any) -> Any:
    return config.update(load.load_recipe("dino-small"), settings | {"data": str(settings["data"])} | more)


CPU = torch.device("cpu")
SMALL_SHM = """
import os, sys
from pathlib import Path
import torch
from nolabel.data import loader
from nolabel.data.images import scan
from nolabel.views import View
from nolabel.data import workers
from nolabel.data.workers import fits_shared_memory
workers.HANG = 3.0  # torch's thread that writes there ends with an error, and its process waits without end
torch.set_num_threads(1)
stream = loader.Stream(scan(sys.argv[1]), (View(96, (0.3, 1.0)),), 0, 24, piped=sys.argv[2] == "piped")
assert "sent through pipes" in fits_shared_memory(loader.waiting_bytes(stream, 1, 1))
print(sum(int(b.views[0].sum()) for b in loader.batches(stream, range(4), 1)))
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="mounts a small /dev/shm: needs root")
def test_a_really_small_shared_memory_kills_without_pipes(pictures: Path) -> None:
    mounted = 'mount -t tmpfs -o size=64k tmpfs /dev/shm && exec "$0" -c "$1" "$2" "$3"'

    def run(how: str) -> "subprocess.CompletedProcess[str]":
        command = ["unshare", "-m", "sh", "-c", mounted, sys.executable, SMALL_SHM, str(pictures / "train"), how]
        return subprocess.run(command, capture_output=True, text=True, timeout=250, check=False)

    if subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False).returncode:
        pytest.skip("no mount namespaces here")
    piped = run("piped")
    assert piped.returncode == 0 and int(piped.stdout) > 0, piped.stderr
    shared = run("shared")
    assert shared.returncode != 0 and "hung for 3 s" in shared.stderr, shared.stderr
