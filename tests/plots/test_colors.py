import numpy as np
import torch

from nolabel.plots.colors import CATEGORICAL, colormap


def test_colormaps_are_close_to_the_published_tables() -> None:
    # Entries 0, 64, 128, 192 and 255 of matplotlib's tables.
    viridis = [(68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37)]
    inferno = [(0, 0, 4), (87, 16, 110), (188, 55, 84), (249, 142, 9), (252, 255, 164)]
    at = np.array([0, 64, 128, 192, 255]) / 255
    assert np.abs(colormap(at).astype(int) - viridis).max() <= 6
    assert np.abs(colormap(at, "inferno").astype(int) - inferno).max() <= 6


def test_colormap_clips_and_keeps_the_shape() -> None:
    colors = colormap(torch.tensor([[-1.0, 0.0], [2.0, float("nan")]]))
    assert colors.shape == (2, 2, 3)
    assert colors.dtype == np.uint8
    assert (colors[0, 0] == colors[0, 1]).all()
    assert (colors[1, 1] == colors[0, 1]).all()
    assert tuple(colors[1, 0]) == (253, 231, 37)


def test_colormap_gets_lighter_all_the_way() -> None:
    colors = colormap(np.linspace(0, 1, 256)).astype(float)
    light = colors @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(light) > -0.5).all()
    assert light[-1] - light[0] > 180


def test_categorical_colors_differ() -> None:
    assert len(set(CATEGORICAL)) == 8
