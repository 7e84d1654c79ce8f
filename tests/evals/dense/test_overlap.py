"""Mean IoU, the Jaccard index and the boundary measure F: values that follow by hand, and independent libraries."""

import math

import numpy as np
import pytest
import torch
from scipy.ndimage import binary_dilation
from torch import Tensor
from torchmetrics.classification import MulticlassConfusionMatrix, MulticlassJaccardIndex

from nolabel.evals.dense.contours import boundary, boundary_f, dilate
from nolabel.evals.dense.iou import VOID, confusion_matrix, jaccard, mean_iou, rounded


def square(top: int, left: int, side: int = 4, size: int = 20) -> Tensor:
    mask = torch.zeros(size, size, dtype=torch.bool)
    mask[top : top + side, left : left + side] = True
    return mask


def test_confusion_matrix_by_hand() -> None:
    truth = torch.tensor([[0, 0, 1], [1, VOID, 2]])
    predicted = torch.tensor([[0, 1, 1], [1, 2, 0]])
    found = confusion_matrix(predicted, truth, 4)
    assert found.tolist() == [[1, 1, 0, 0], [0, 2, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]
    scores = mean_iou(found)
    assert scores.iou == (pytest.approx(100 / 3), pytest.approx(200 / 3), 0.0, None)
    assert scores.miou == pytest.approx(100 / 3)  # the fourth class is nowhere: it does not count
    assert scores.accuracy == pytest.approx(60)
    assert rounded(scores, ("a", "b", "c", "d"))["iou"] == {"a": 33.3333, "b": 66.6667, "c": 0.0, "d": None}


def test_nothing_known_is_no_score() -> None:
    nothing = torch.full((2, 2), VOID)
    assert mean_iou(confusion_matrix(torch.zeros(2, 2).long(), nothing, 3)) == (None, None, (None, None, None))


def test_mean_iou_is_that_of_torchmetrics() -> None:
    generator = torch.Generator().manual_seed(0)
    truth = torch.randint(-1, 6, (3, 37, 41), generator=generator)
    predicted = torch.where(
        torch.rand(truth.shape, generator=generator) < 0.6,
        truth.clamp_min(0),
        torch.randint(0, 6, truth.shape, generator=generator),
    )
    ours = sum(confusion_matrix(p, t.short(), 6) for p, t in zip(predicted, truth, strict=True))
    assert isinstance(ours, Tensor)
    assert torch.equal(ours, MulticlassConfusionMatrix(6, ignore_index=VOID)(predicted, truth))
    theirs = MulticlassJaccardIndex(6, average="none", ignore_index=VOID)(predicted, truth)
    assert mean_iou(ours).iou == pytest.approx((100 * theirs).tolist(), rel=1e-5)
    assert mean_iou(ours).miou == pytest.approx(100 * float(theirs.mean()), rel=1e-5)


def test_jaccard_by_hand() -> None:
    assert float(jaccard(square(2, 2), square(2, 2))) == 1
    assert float(jaccard(square(2, 4), square(2, 2))) == pytest.approx(8 / 24)  # half of it on half of it
    assert float(jaccard(square(2, 12), square(2, 2))) == 0
    nothing = torch.zeros(20, 20, dtype=torch.bool)
    assert float(jaccard(nothing, nothing)) == 1
    assert float(jaccard(nothing, square(2, 2))) == 0
    known = torch.ones(20, 20, dtype=torch.bool)
    known[:, :4] = False  # only the right half of the truth counts, and all of it is found
    assert float(jaccard(square(2, 4), square(2, 2), known)) == pytest.approx(8 / 16)


def test_boundary_by_hand() -> None:
    """The line runs through the pixels left of, above, and inside the right and lower edges."""
    edge = boundary(square(2, 2, side=3, size=8))
    expected = [(1, x) for x in (1, 2, 3, 4)] + [(2, 1), (2, 4), (3, 1), (3, 4), (4, 1), (4, 2), (4, 3), (4, 4)]
    assert sorted(map(tuple, edge.nonzero().tolist())) == sorted(expected)
    corner = boundary(square(0, 0, side=3, size=8))
    assert sorted(map(tuple, corner.nonzero().tolist())) == [(0, 2), (1, 2), (2, 0), (2, 1), (2, 2)]
    assert not boundary(torch.ones(5, 7, dtype=torch.bool)).any()


@pytest.mark.parametrize("radius", [0, 1, 3, 9, 40])
def test_dilation_is_that_of_scipy(radius: int) -> None:
    mask = torch.rand(23, 31, generator=torch.Generator().manual_seed(radius)) < 0.02
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    expected = binary_dilation(mask.numpy(), x**2 + y**2 <= radius**2)
    assert np.array_equal(dilate(mask, radius).numpy(), expected)


def test_f_of_shifted_and_empty_masks() -> None:
    nothing, everything = torch.zeros(20, 20, dtype=torch.bool), torch.ones(20, 20, dtype=torch.bool)
    assert boundary_f(square(5, 5), square(5, 5)) == 1
    # 0.008 of the diagonal of 28.3 px is less than one pixel, so one pixel is allowed: a shift by one is forgiven
    assert boundary_f(square(5, 6), square(5, 5)) == 1
    assert boundary_f(square(5, 14), square(5, 5)) == 0
    assert boundary_f(nothing, nothing) == boundary_f(everything, nothing) == 1  # neither has a boundary
    assert boundary_f(nothing, square(5, 5)) == boundary_f(square(5, 5), nothing) == 0


def test_f_of_a_part_by_hand() -> None:
    """A square with another one far away: all of the truth's line is found, half of ours is right."""
    both = square(3, 3) | square(13, 13)
    assert boundary_f(both, square(3, 3)) == pytest.approx(2 * 0.5 * 1 / 1.5)
    assert boundary_f(square(3, 3), both) == pytest.approx(2 * 0.5 * 1 / 1.5)


def test_f_is_that_of_a_slow_loop() -> None:
    generator = torch.Generator().manual_seed(3)
    for _ in range(3):
        a, b = (torch.rand(24, 30, generator=generator) < p for p in (0.05, 0.05))
        a, b = dilate(a, 2), dilate(b, 2)
        lines = [boundary(m).nonzero().tolist() for m in (a, b)]
        radius = math.ceil(0.1 * math.hypot(24, 30))

        def near(point: list[int], line: list[list[int]], radius: int = radius) -> bool:
            return any((point[0] - y) ** 2 + (point[1] - x) ** 2 <= radius**2 for y, x in line)

        precision = sum(near(p, lines[1]) for p in lines[0]) / len(lines[0])
        recall = sum(near(p, lines[0]) for p in lines[1]) / len(lines[1])
        expected = 2 * precision * recall / (precision + recall)
        assert boundary_f(a, b, 0.1) == pytest.approx(expected)
