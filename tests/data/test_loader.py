"""Replacement of a file that cannot be read, and memory of batches that wait."""

from pathlib import Path

import pytest
import torch

from nolabel.data import loader
from nolabel.data.images import read, scan
from nolabel.data.loader import Stream, batches, cut, samples, waiting_bytes
from nolabel.views import View

VIEWS = (View(16, (0.3, 1.0)), View(8, (0.1, 0.3)))


@pytest.fixture
def stream(pictures: Path, tmp_path: Path) -> Stream:
    """The pictures, of which the last is damaged."""
    images = scan(pictures, "train")
    for number in range(6):
        (tmp_path / f"{number}.png").write_bytes(read(images, number)[: 30 if number == 5 else None])
    return Stream(scan(tmp_path), VIEWS, seed=0, batch_size=6)


def test_the_next_image_takes_the_place_with_the_numbers_of_the_place(stream: Stream) -> None:
    """After the last comes the first."""
    (slots,) = samples(stream, range(1), 0, 1)
    (batch,) = batches(stream, range(1), 0)
    place = [image for _, image in slots].index(5)
    expected = cut(read(stream.images, 0), VIEWS, [(0, 0, 5, v) for v in range(2)]).views
    for views, one in zip(batch.views, expected, strict=True):
        assert torch.equal(views[place], one)
    assert [[bad.name for bad in files] for files in batch.bad] == [["5.png"]]


def test_a_bad_file_is_read_once(stream: Stream, monkeypatch: pytest.MonkeyPatch) -> None:
    """A broken folder costs one look at each file, not one at each step."""
    asked = []
    monkeypatch.setattr(loader, "read", lambda images, index: asked.append(index) or read(images, index))
    assert all(len(batch.bad) == 1 for batch in batches(stream, range(4), 0))
    assert asked.count(5) == 1 and asked.count(0) == 8


def test_the_bytes_of_batches_that_wait(stream: Stream) -> None:
    """Four for each process and the one in use; 3 bytes per pixel."""
    of_views = 3 * (16 * 16 + 8 * 8)
    assert waiting_bytes(stream, 0, 1) == 0
    assert waiting_bytes(stream, 2, 1) == 9 * 6 * of_views and waiting_bytes(stream, 1, 3) == 5 * 2 * of_views
    assert waiting_bytes(stream._replace(whole=True), 1, 1) == 5 * 6 * 3 * 500 * 375
