"""The queue against a slow one, and what must not move it."""

import pytest
import torch
from torch import Tensor

from nolabel.networks.queue import Queue

OK, BAD = torch.ones(()), torch.zeros(())


def queue(size: int = 8, dim: int = 3, seed: int = 0) -> Queue:
    torch.manual_seed(seed)
    return Queue(size, dim)


def batch(number: int, size: int) -> Tensor:
    """Rows that tell where they come from."""
    return torch.arange(size * 3.0).view(size, 3) + 100 * number


def test_it_starts_with_random_unit_vectors_of_the_seed() -> None:
    q = queue(2048, 128)
    torch.testing.assert_close(q.keys.norm(dim=1), torch.ones(2048))
    assert q.pointer == 0 and q.pointer.dtype == torch.int64 and q.pointer.ndim == 0
    cosines = q.keys @ q.keys.T
    cosines.fill_diagonal_(0)
    assert cosines.mean().abs() < 1e-3 and cosines.std().item() == pytest.approx(128**-0.5, rel=0.02)
    assert torch.equal(q.keys, queue(2048, 128).keys) and not torch.equal(q.keys, queue(2048, 128, seed=1).keys)


@pytest.mark.parametrize("sizes", [[4] * 5, [3] * 9, [8, 8], [5, 1, 7, 2, 6, 6], [11, 3, 20, 8, 1], [1] * 20, [17]])
def test_rows_are_replaced_one_after_the_other(sizes: list[int]) -> None:
    q = queue()
    slow, place = q.keys.tolist(), 0
    for number, size in enumerate(sizes, 1):
        rows = batch(number, size)
        q.enqueue(rows, OK)
        for row in rows.tolist():
            slow[place] = row
            place = (place + 1) % 8
        assert q.keys.tolist() == slow
        assert q.pointer.item() == place


def test_a_bad_step_moves_nothing() -> None:
    q = queue()
    q.enqueue(batch(1, 5), OK)
    before = {name: value.clone() for name, value in q.state_dict().items()}
    q.enqueue(torch.full((5, 3), torch.nan), BAD)
    assert all(torch.equal(before[name], value) for name, value in q.state_dict().items())
    q.enqueue(batch(2, 5), OK)
    assert q.keys[5:].tolist() == batch(2, 5)[:3].tolist() and q.keys[:2].tolist() == batch(2, 5)[3:].tolist()


def test_the_pointer_is_saved_with_the_rows() -> None:
    a, b = queue(), queue(seed=1)
    a.enqueue(batch(1, 3), OK)
    b.load_state_dict(a.state_dict())
    assert a.state_dict().keys() == {"keys", "pointer"}
    for q in (a, b):
        q.enqueue(batch(2, 7), OK)
    assert torch.equal(a.keys, b.keys) and torch.equal(a.pointer, b.pointer)


def test_the_host_reads_nothing() -> None:
    """A meta tensor has no value: whatever asks for one raises."""
    q = queue().to("meta")
    q.enqueue(torch.empty(3, 3, device="meta"), torch.ones((), device="meta"))


def test_half_precision_keys_are_kept_in_float32() -> None:
    q = queue()
    q.enqueue(batch(1, 2).bfloat16(), OK)
    assert q.keys.dtype == torch.float32 and torch.equal(q.keys[:2], batch(1, 2).bfloat16().float())
