from typing import cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from nolabel.networks.backbones import Backbone, Features
from nolabel.plots.pca import foreground, pca_basis, pca_rgb, pca_sheet

MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_basis_finds_planted_directions() -> None:
    directions = torch.linalg.qr(random(10, 3)).Q.T
    weights = random(500, 3, seed=1) * torch.tensor([9.0, 3.0, 1.0])
    basis = pca_basis(weights @ directions + 5.0)
    cosines = (basis.components.float() @ directions.T).abs()
    torch.testing.assert_close(cosines, torch.eye(3), atol=0.05, rtol=0)
    assert basis.explained.sum().item() == pytest.approx(1.0)
    assert basis.explained[0] > basis.explained[1] > basis.explained[2]


def test_basis_has_fixed_signs() -> None:
    x = random(200, 6) * torch.tensor([5.0, 4.0, 3.0, 1.0, 1.0, 1.0])
    a, b = pca_basis(x), pca_basis(x.flip(0))
    torch.testing.assert_close(a.components, b.components)
    assert (a.components.gather(1, a.components.abs().argmax(1, keepdim=True)) > 0).all()


def test_equal_features_get_equal_colors() -> None:
    x = random(2, 30, 8)
    basis = pca_basis(x.flatten(0, 1))
    colors = pca_rgb(x, basis)
    assert colors.shape == (2, 30, 3)
    assert colors.dtype == np.uint8
    assert (pca_rgb(x[1], basis) == colors[1]).all()
    assert colors.min() == 0
    assert colors.max() == 255


@pytest.mark.parametrize(
    "x", [torch.ones(1, 4), torch.ones(50, 4), torch.ones(50, 2), random(2, 7), random(50, 1)], ids=str
)
def test_features_without_three_directions_still_get_colors(x: Tensor) -> None:
    basis = pca_basis(x)
    assert basis.components.shape == (3, x.shape[1])
    assert basis.components.isfinite().all()
    assert basis.explained.isfinite().all()
    assert (pca_rgb(x, basis)[:, 2] == 127).all() or (pca_rgb(x, basis)[:, 2] == 128).all()


def test_foreground_is_what_is_rare_on_the_border() -> None:
    subject = torch.zeros(6, 6, dtype=torch.bool)
    subject[2:5, 1:4] = True
    for sign in (1, -1):
        patches = random(36, 8) * 0.1
        patches[subject.flatten(), 0] += 4.0 * sign
        (mask,) = foreground([Features(patches.mean(0)[None], patches[None], (6, 6))])
        assert torch.equal(mask.view(6, 6), subject)


class Pixels(nn.Module):
    """Stands in for a backbone: the features of a patch of 4 px are its pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Features:
        patches = nn.functional.unfold(x, 4, stride=4).transpose(1, 2)
        return Features(patches.mean(1), patches, (x.shape[2] // 4, x.shape[3] // 4))


def test_sheet_takes_images_of_any_shape() -> None:
    net = cast(Backbone, Pixels())
    images = [random(3, 16, 24, seed=i) if i % 2 else random(3, 32, 12, seed=i) for i in range(8)]
    for subject_only in (False, True):
        page = pca_sheet(net, images, MEAN, STD, title="eight", subject_only=subject_only)
        assert page.width > 6 * 192
    named = pca_sheet(net, images[:1], MEAN, STD, names=["a name"])
    assert named.height > 2 * 192
    with pytest.raises(ValueError, match="at least one image"):
        pca_sheet(net, [], MEAN, STD)
